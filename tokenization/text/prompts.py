"""Prompts: what an item is and where it is, as text, and the two parts apart.

LGSID's prompt is P_i = [content_i, location_i] (arXiv 2511.14221, section 4.1.1 and equation 1). The reward model asks
how well content_i goes with location_j, so the parts are kept apart and joined when they are needed.

The default template has no word of any language: values in the paper's order, joined by marks. Whoever wants words
gives them as settings, for example ``content_template="{name}: {category}"`` or ``labels={"price": "price"}``.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .pictures import Input, Shown
from .settings import CONTENT_FIELDS, LOCATION_FIELDS, PromptConfig, parse_template


@dataclass(frozen=True)
class Prompts:
    """Contents and locations of N items as text, to be joined in any combination.

    Attributes:
        content, location: string [N], empty where an item has none.
        separator: between the two.
        unknown: stands for a prompt without any text.
        images: paths of the items' pictures, string [N], null for an item without; None: nobody is to see any.
    """

    content: pa.Array
    location: pa.Array
    separator: str
    unknown: str
    images: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.content)

    def texts(self, content: NDArray[np.int64] | None = None, location: NDArray[np.int64] | None = None) -> list[str]:
        """Prompts [content_i, location_j] for rows i and j [n]; of all items without rows, of ``content`` twice
        with the first alone."""
        rows = np.arange(len(self)) if content is None else np.asarray(content)
        left = self.content.take(pa.array(rows))
        right = self.location.take(pa.array(rows if location is None else np.asarray(location)))
        joined = _join([_null_if_empty(left), _null_if_empty(right)], self.separator)
        return list(_if_empty(joined, self.unknown).to_pylist())

    def inputs(
        self, content: NDArray[np.int64] | None = None, location: NDArray[np.int64] | None = None
    ) -> list[Input]:
        """The same prompts as they are encoded: with the pictures of the items whose content they have."""
        texts = self.texts(content, location)
        if self.images is None:
            return list(texts)
        images = self.images if content is None else self.images.take(pa.array(np.asarray(content)))
        return [t if i is None else Shown(t, i) for t, i in zip(texts, images.to_pylist(), strict=True)]

    @cached_property
    def location_codes(self) -> NDArray[np.int64]:
        """A number for each location text, [N]: items with the same text share it; 0 is the first text seen."""
        codes: NDArray[np.int64] = self.location.dictionary_encode().indices.to_numpy().astype(np.int64)
        return codes


def build_prompts(items: pa.Table, config: PromptConfig, images: bool = False) -> Prompts:
    """Prompts of a table of items in placerank's schema; columns may be missing.

    Args:
        images: whether they show the pictures of the column ``image``.

    Raises:
        ValueError: no item has any text, or picture; pictures are to be shown, and there is no such column.
    """
    if images and "image" not in items.column_names:
        raise ValueError("encoder.images is set, and the items have no column image; give --items the raw ones")
    pictures = pa.array(items["image"].to_pylist(), pa.string()) if images else None
    content = _part(items, config.content, config.content_template, config)
    location = _part(items, config.location, config.location_template, config)
    seen = pictures is not None and pictures.null_count < len(pictures)
    if not seen and not any(pc.any(pc.not_equal(part, "")).as_py() for part in (content, location)):
        raise ValueError(
            f"none of the {len(items):,} items has any text in {[*config.content, *config.location]}; "
            "give names or categories, or derive districts from coordinates"
        )
    return Prompts(content, location, config.part_separator, config.unknown, pictures)


def _part(items: pa.Table, names: tuple[str, ...], template: str | None, config: PromptConfig) -> pa.Array:
    """One part of all prompts, string [N]; empty where nothing is known."""
    if template is None:
        columns = []
        for name in names:
            text = _field(items, name, config)
            label = config.labels.get(name)
            columns.append(pc.binary_join_element_wise(label, text, ": ") if label else text)
        return _if_empty(_join(columns, config.separator), "") if columns else pa.array([""] * len(items))
    pieces: list[str | pa.Array] = []
    known = pa.array(np.zeros(len(items), bool))
    for literal, field_name in parse_template(template, "template", (*CONTENT_FIELDS, *LOCATION_FIELDS)):
        pieces.append(literal)
        if field_name is not None:
            text = _field(items, field_name, config)
            known = pc.or_(known, pc.is_valid(text))
            pieces.append(pc.fill_null(text, ""))
    whole = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*pieces, ""))
    return pc.if_else(known, whole, "")  # a template's own words say nothing about an item


def _field(items: pa.Table, name: str, config: PromptConfig) -> pa.Array:
    """A column as text, null where it is missing or blank."""
    if name not in items.column_names:
        return pa.nulls(len(items), pa.string())
    column = items[name].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if name == "category" and not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        # A null or empty level would null the path: put them away first.
        flat, parents = pc.list_flatten(column), pc.list_parent_indices(column)
        good = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(flat), ""), False)
        parents, flat = pc.filter(parents, good).to_numpy(), pc.filter(flat, good)
        offsets = np.searchsorted(parents, np.arange(len(items) + 1))
        levels = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.cast(pa.string()))
        text = pc.binary_join(levels, config.path_separator)
    elif name == "price":
        text = pa.array([None if x is None or x != x else f"{x:g}" for x in column.to_pylist()], pa.string())
    elif name in ("lat", "lon"):
        text = pa.array([None if x is None or x != x else f"{x:.4f}" for x in column.to_pylist()], pa.string())
    else:
        text = column.cast(pa.string())
    text = pc.utf8_trim_whitespace(text)
    return _null_if_empty(text)


def _join(columns: list[pa.Array], separator: str) -> pa.Array:
    """The values that are not null, joined; null where all are.

    Not by ``null_handling="skip"``, which leaves out rows in which all are null (pyarrow 26).
    """
    joined, *rest = columns
    for column in rest:
        joined = pc.coalesce(pc.binary_join_element_wise(joined, column, separator), joined, column)
    return joined


def _null_if_empty(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _if_empty(text: pa.Array, instead: str) -> pa.Array:
    return pc.fill_null(_null_if_empty(text), instead)
