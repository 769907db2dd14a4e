"""What semantic IDs are worth: how evenly codes are used, what they lose, and what they say about place and category.

Codes int64 [N, L]; labels int64 [N], -1 where unknown. A prefix of l codes is what the items of a token have in common
on level l. Measures of embeddings, before they are tokenized, are in ``coverage``.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ..codes.attributes import mix, one_array, text_hashes
from ..codes.collisions import id_numbers
from ..codes.tokenizer import Tokenizer
from ..text.item_table import take_rows
from ..text.vectors import Vectors, block

Ints = NDArray[np.integer[Any]]
MOST_ITEMS = 1_000_000
"""Items whose attributes are looked at, evenly spaced ones where there are more."""
PERCENTILES = (10, 25, 50, 75, 90, 99)
REGIONS = ("province", "city", "district")


def usage(code: Ints, count: int) -> dict[str, Any]:
    """How one level's codes [N] are spread over its ``count`` centres.

    Returns:
        ``entropy`` in nats; ``evenness``, entropy / log K; ``perplexity``, exp(entropy), the number of codes that
        would be as even; ``dead``, codes of no item; ``items``: percentiles over the codes of how many items a code
        stands for (LGSID, figure 4), ``max`` too.
    """
    counts = np.bincount(code, minlength=count)
    share = counts[counts > 0] / max(len(code), 1)
    entropy = float(-(share * np.log(share)).sum())
    quantiles = np.percentile(counts, PERCENTILES)
    return {
        "codes": count,
        "entropy": entropy,
        "evenness": entropy / np.log(count) if count > 1 else 1.0,
        "perplexity": float(np.exp(entropy)),
        "dead": int((counts == 0).sum()),
        "items": {f"p{p}": float(q) for p, q in zip(PERCENTILES, quantiles, strict=True)} | {"max": int(counts.max())},
    }


def reconstruction(
    tokenizer: Tokenizer, vectors: Vectors, codes: Ints, *, rows: int = 262_144, block_rows: int = 16_384
) -> dict[str, Any]:
    """How much of the embeddings the codes keep, by number of levels decoded.

    Streamed over at most ``rows`` items: evenly spaced blocks where there are more.

    Returns:
        ``rows`` looked at; for each prefix length the mean squared error of an item (summed over dimensions), and
        ``explained``: 1 - error / variance. An RQ-VAE's decoder is trained on whole IDs, its prefixes are below 0 at
        times.
    """
    starts = np.arange(0, len(vectors), block_rows)
    if len(vectors) > rows:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, rows // block_rows)).round().astype(int)]
    levels, seen = codes.shape[1], 0
    error, square = np.zeros(levels), 0.0
    total = torch.zeros(tokenizer.dim, dtype=torch.float64)
    for start in starts:
        x = block(vectors, int(start), min(int(start) + block_rows, len(vectors)), torch.device("cpu"))
        some = torch.from_numpy(codes[start : start + len(x)].astype(np.int64))
        for level in range(levels):
            error[level] += float((x - tokenizer.decode(some[:, : level + 1])).square().sum(dtype=torch.float64))
        seen, total = seen + len(x), total + x.sum(0, dtype=torch.float64)
        square += float(x.square().sum(dtype=torch.float64))
    variance = max(square / seen - float((total / seen).square().sum()), 1e-30)
    mean = error / seen
    return {"rows": seen, "error": mean.tolist(), "explained": (1 - mean / variance).tolist(), "variance": variance}


def _entropy(counts: Ints) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _pairs(a: Ints, b: Ints) -> tuple[Ints, Ints, Ints]:
    """Different pairs of a and b [N] (from 0 on), and how many of each: a sparse contingency table."""
    width = int(b.max(initial=0)) + 1
    pair, counts = np.unique(a * width + b, return_counts=True)
    return pair // width, pair % width, counts


def nmi(a: Ints, b: Ints) -> float | None:
    """Normalised mutual information of two labellings [N], 2 I(a; b) / (H(a) + H(b)); in [0, 1].

    Items with -1 in either are left out. None where nothing is left. 1 where both have a single label, as in
    scikit-learn's ``normalized_mutual_info_score``, which this equals.
    """
    known = (a >= 0) & (b >= 0)
    if not known.any():
        return None
    a, b = a[known], b[known]
    ha, hb = _entropy(np.unique(a, return_counts=True)[1]), _entropy(np.unique(b, return_counts=True)[1])
    if ha == 0 and hb == 0:
        return 1.0
    information = ha + hb - _entropy(_pairs(a, b)[2])
    return float(np.clip(2 * information / (ha + hb), 0, 1))


def cohesion(prefix: Ints, category: Ints) -> dict[str, float] | None:
    """How well prefixes and categories hold together (LGSID, section 6.4), over items of a known category.

    Returns:
        ``purity``: share of items that are of their prefix's most frequent category. ``purity_by_chance``: the share
        of the most frequent category of all. ``concentration``: share of items that are in the prefix that most
        of their category is in. ``prefixes_a_category``: exp of the mean entropy of a category over prefixes: over so
        many a category is scattered.
    """
    known = category >= 0
    if not known.any():
        return None
    a, b, counts = _pairs(prefix[known], category[known])
    best_of_prefix, best_of_category = np.zeros(a.max() + 1, np.int64), np.zeros(b.max() + 1, np.int64)
    of_category = np.zeros(b.max() + 1, np.int64)
    np.maximum.at(best_of_prefix, a, counts)
    np.maximum.at(best_of_category, b, counts)
    np.add.at(of_category, b, counts)
    items = counts.sum()
    scatter = -(counts / items * np.log(counts / of_category[b])).sum()
    return {
        "purity": float(best_of_prefix.sum() / items),
        "purity_by_chance": float(of_category.max() / items),
        "concentration": float(best_of_category.sum() / items),
        "prefixes_a_category": float(np.exp(scatter)),
    }


def region_labels(items: pa.Table) -> dict[str, tuple[Ints, list[str]]]:
    """Labels of province, city and district, with the names they stand for; those that no item has are left out.

    A district is told from one of the same name elsewhere by what is above it.
    """
    found: dict[str, tuple[Ints, list[str]]] = {}
    above = np.zeros((len(items), 0), np.int64)
    for name in REGIONS:
        column = items[name] if name in items.column_names else pa.nulls(len(items), pa.string())
        encoded = pc.dictionary_encode(pa.chunked_array([column]) if isinstance(column, pa.Array) else column)
        encoded = encoded.combine_chunks()
        code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        above = np.column_stack([above, code])
        if (code < 0).all():
            continue
        known = np.flatnonzero(code >= 0)
        label = np.full(len(items), -1)
        label[known] = id_numbers(above[known])
        _, first = np.unique(label[known], return_index=True)
        words = encoded.dictionary.to_pylist()
        found[name] = (label, [words[code[known[i]]] for i in first])
    return found


class RegionOfRows:
    """Labels of a region for the rows that are asked for, int64: hashes of it and what is above it, -1 where unknown.

    For items of which there are too many to label all.
    """

    def __init__(self, items: pa.Table, name: str) -> None:
        levels = REGIONS[: REGIONS.index(name) + 1]
        self.items = items.select([level for level in levels if level in items.column_names])

    def __getitem__(self, rows: Ints) -> Ints:
        wanted, back = np.unique(rows, return_inverse=True)
        label, known = np.zeros(len(wanted), np.uint64), np.zeros(len(wanted), bool)
        some = take_rows(self.items, wanted.astype(np.int64))
        for column in some.columns:
            text, known = text_hashes(one_array(column))
            label = mix(np.where(known, label ^ text, label))
        label = np.where(known, (label >> np.uint64(1)).astype(np.int64), -1)
        return label[back].reshape(np.shape(rows))


def category_labels(items: pa.Table, depth: int) -> tuple[Ints, list[str]]:
    """Labels of the category path cut at ``depth`` levels, and their names; shorter paths count as they are."""
    if "category" not in items.column_names:
        return np.full(len(items), -1), []
    path = pc.list_slice(items["category"].cast(pa.list_(pa.string())), 0, depth)
    joined = pc.binary_join(path, " > ")
    joined = pc.if_else(pc.equal(pc.list_value_length(items["category"]), 0), None, joined)
    encoded = joined.combine_chunks().dictionary_encode()
    label = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return label, encoded.dictionary.to_pylist()


def cohesion_examples(
    codes: Ints, category: Ints, names: list[str], most: int = 3, shown: int = 8
) -> list[dict[str, Any]]:
    """The case study of LGSID's figure 5: at each level the prefixes of most items, and their most frequent categories.

    Returns:
        One a prefix: ``prefix`` (codes), ``items``, ``categories`` as [name, items], the most frequent first.
    """
    out = []
    for level in range(codes.shape[1]):
        number = id_numbers(codes[:, : level + 1])
        counts = np.bincount(number)
        for prefix in np.argsort(-counts, kind="stable")[:most]:
            rows = np.flatnonzero(number == prefix)
            known = category[rows][category[rows] >= 0]
            by = np.bincount(known, minlength=1)
            top = [k for k in np.argsort(-by, kind="stable")[:shown] if by[k]]
            out.append(
                {
                    "prefix": codes[rows[0], : level + 1].tolist(),
                    "items": int(counts[prefix]),
                    "categories": [[names[k], int(by[k])] for k in top],
                }
            )
    return out


def measured_items(items: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The items whose attributes are looked at, and their rows: all, or evenly spaced ones."""
    rows = np.arange(0, len(items), -(-len(items) // MOST_ITEMS))
    looked_at = [name for name in (*REGIONS, "category", "lat", "lon") if name in items.column_names]
    looked_at = looked_at or items.column_names[:1]  # of users there are ids alone
    return items if len(rows) == len(items) else take_rows(items.select(looked_at), rows), rows


def token_measures(codes: Ints, count: int, items: pa.Table, rows: Ints | None = None) -> dict[str, Any]:
    """Everything about the codes that needs no embedding, level by level.

    ``levels[l]`` has ``usage`` of the level's own codes, and of prefixes of l + 1 codes: ``prefixes`` (how many there
    are), ``nmi`` with each region, ``cohesion`` with primary and secondary category.

    Args:
        codes: of all items, [N, L].
        count: codes a level, K.
        items: attributes of those of ``rows``, [n].
        rows: which those are, [n]; the other items' attributes are not looked at. None: all.
    """
    rows = np.arange(len(codes)) if rows is None else rows
    regions = region_labels(items)
    categories = {name: category_labels(items, depth) for name, depth in (("primary", 1), ("secondary", 2))}
    levels = []
    for level in range(codes.shape[1]):
        number = id_numbers(codes[:, : level + 1])
        prefixes, prefix = int(number.max(initial=-1)) + 1, number[rows]
        del number
        levels.append(
            {
                "usage": usage(codes[:, level], count),
                "prefixes": prefixes,
                "nmi": {name: nmi(prefix, label) for name, (label, _) in regions.items()},
                "cohesion": {name: cohesion(prefix, label) for name, (label, _) in categories.items()},
            }
        )
    label, names = categories["secondary"]
    return {"levels": levels, "examples": cohesion_examples(codes[rows], label, names)}
