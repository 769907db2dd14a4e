"""The report of ``tokenize``: every measure in ``measures.json``, and one page with pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...reports import figures, page
from ..codes.collisions import collisions
from ..codes.tokenizer import Tokenizer
from ..text.store import EmbeddingStore
from ..text.vectors import Vectors
from . import token_pictures
from .coverage import cluster_nmi, neighbour_coverage
from .measures import (
    PERCENTILES,
    Ints,
    RegionOfRows,
    measured_items,
    reconstruction,
    region_labels,
    token_measures,
)
from .settings import ReportConfig

_SHORT = {"province": "P", "city": "C", "district": "T"}
_MAP_POINTS = 200_000


def measure(
    config: ReportConfig, tokenizer: Tokenizer, vectors: Vectors, items: pa.Table, codes: Ints, suffixes: Ints
) -> dict[str, Any]:
    """Everything that is measured, JSON-ready.

    Args:
        vectors: embeddings [N, D].
        items: their attributes, [N]; past a million of them, those of a million evenly spaced ones are looked at, and
            of neighbours those that are found.
        codes, suffixes: [N, L] and [N].
    """
    some, rows = measured_items(items)
    labels = region_labels(some)
    regions: dict[str, Ints | RegionOfRows] = {
        name: label if some is items else RegionOfRows(items, name) for name, (label, _) in labels.items()
    }
    found: dict[str, Any] = {
        "tokenizer": tokenizer.name,
        "items": len(codes),
        "collisions": {
            "before": collisions(codes),
            "after": collisions(np.column_stack([codes, suffixes.astype(codes.dtype)])),
            "suffixes": int(suffixes.max(initial=0)) + 1,
        },
        "reconstruction": reconstruction(tokenizer, vectors, codes, rows=config.rows),
        **token_measures(codes, tokenizer.config.codes, some, rows),
    }
    if config.queries:
        before = EmbeddingStore.open(config.before) if config.before else None
        found["embeddings"] = {
            "after" if before is not None else "here": {
                **neighbour_coverage(
                    vectors, regions, queries=config.queries, reference=before, device=tokenizer.device
                ),
                "nmi": cluster_nmi(vectors, regions),
            }
        }
        if before is not None:
            found["embeddings"]["before"] = {
                **neighbour_coverage(before, regions, queries=config.queries, device=tokenizer.device),
                "nmi": cluster_nmi(before, regions),
            }
    return found


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def write_report(
    folder: Path, config: ReportConfig, measures: dict[str, Any], vectors: Vectors, items: pa.Table, codes: Ints
) -> Path:
    """Write ``report.html`` and ``map.png``; returns the page."""
    some, rows = measured_items(items)
    levels, before, after = measures["levels"], measures["collisions"]["before"], measures["collisions"]["after"]
    count, of = levels[0]["usage"]["codes"], measures.get("of", "items")
    sections = [
        _levels(measures),
        _map(folder, some, codes[rows, 0], count),
        page.section(
            "How evenly codes are used",
            f"{of.capitalize()} of each code, from the fullest to the emptiest. The dashed line is the even share.",
            figures.svg(lambda: token_pictures.usage_curves(codes, count)) + _percentiles(levels),
        ),
        _categories(measures),
        _embeddings(config, measures, vectors, some, rows),
        _numbers(measures),
    ]
    nmi = {k: v for k, v in levels[0]["nmi"].items() if v is not None}
    cards = [
        (f"{measures['reconstruction']['explained'][-1]:.1%}", "of the embeddings' variance is explained"),
        (f"{before['collision_rate']:.1%}", f"of the {of} share all codes with another one"),
        (f"{after['collision_rate']:.0%}", "share an ID once suffixes are there"),
        (str(sum(level["usage"]["dead"] for level in levels)), f"codes without {of}"),
        *((_share(v), f"NMI of the first token with the {k}") for k, v in nmi.items()),
    ]
    file = folder / "report.html"
    shape = f"{measures['items']:,} {of} · {len(levels)} levels of {count:,} codes"
    subtitle = f"{shape} · {before['ids']:,} different IDs"
    page.write_page(file, f"placerank · {measures['tokenizer']}", subtitle, cards, sections)
    return file


def _levels(measures: dict[str, Any]) -> str:
    rows = []
    for i, level in enumerate(measures["levels"]):
        use, secondary = level["usage"], level["cohesion"]["secondary"]
        rows.append(
            [
                f"{i + 1}",
                _share(measures["reconstruction"]["explained"][i]),
                f"{use['entropy']:.3f}",
                f"{use['evenness']:.3f}",
                f"{use['perplexity']:,.0f}",
                f"{use['dead']:,}",
                f"{level['prefixes']:,}",
                *(_share(level["nmi"].get(name)) for name in _SHORT),
                _share(secondary and secondary["purity"]),
                _share(secondary and secondary["concentration"]),
            ]
        )
    head = ["level", "explained", "entropy", "of even", "perplexity", "dead", "prefixes"]
    head += [f"NMI {name}" for name in _SHORT] + ["purity", "concentration"]
    lead = (
        "Explained: share of the variance that this many levels give back. Entropy (nats), perplexity and dead codes "
        "are of the level's own codes. NMI, purity (items of their prefix's main category) and concentration (items "
        "in their category's main prefix) are of the prefix up to the level."
    )
    return page.section("Level by level", lead, page.table(head, rows))


def _percentiles(levels: list[dict[str, Any]]) -> str:
    head = ["items a code stands for", *(f"{p} %" for p in PERCENTILES), "most"]
    return page.table(
        head, [[f"level {i + 1}", *(f"{v:,.0f}" for v in lv["usage"]["items"].values())] for i, lv in enumerate(levels)]
    )


def _map(folder: Path, items: pa.Table, tokens: Ints, count: int) -> str:
    if not {"lat", "lon"} <= set(items.column_names):
        return ""
    lat, lon = (items[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
    if not np.isfinite(lat).any():
        return ""
    city = region_labels(items).get("city", (np.full(len(items), -1), []))[0]
    some = np.sort(np.random.default_rng(0).permutation(len(items))[:_MAP_POINTS])
    draw = lambda: token_pictures.token_map(lat[some], lon[some], tokens[some], count, city[some])  # noqa: E731
    return page.section(
        "Map of first tokens",
        "Every point is an item; items of one colour share their first code. Colours say nothing else.",
        figures.png(draw, "map of the items by first token", folder / "map.png"),
    )


def _categories(measures: dict[str, Any]) -> str:
    examples = [e for e in measures["examples"] if e["categories"]]
    if not examples:
        return ""
    lead = "The prefixes of most items on each level, and the share of each category in them; * is any code."
    return page.section("What prefixes hold", lead, figures.svg(lambda: token_pictures.category_bars(examples)))


def _embeddings(config: ReportConfig, measures: dict[str, Any], vectors: Vectors, items: pa.Table, of: Ints) -> str:
    found, body = measures.get("embeddings", {}), ""
    for kind in ("before", "after", "here"):
        one = found.get(kind)
        if one is None or not one["similarity"]:
            continue
        title = {"before": "before alignment", "after": "after alignment", "here": "these embeddings"}[kind]
        rows = [["similarity", *map(_share, one["similarity"].values())]]
        if "reference_similarity" in one:
            rows.append(["similarity before alignment", *map(_share, one["reference_similarity"].values())])
        rows += [[f"{name} ({_SHORT[name]}@K)", *map(_share, one[name].values())] for name in _SHORT if name in one]
        rows = [[*row, _share(one["nmi"].get(row[0].split(" ")[0]))] for row in rows]
        body += page.table([title, *(f"K = {k}" for k in one["similarity"]), "NMI of clusters"], rows)
    regions = region_labels(items)
    label, names = regions.get("city") or regions.get("province") or regions.get("district") or _nowhere(len(items))
    if len(np.unique(label)) < 2 and "district" in regions:
        label, names = regions["district"]
    sources: list[tuple[str, Vectors]] = [("embeddings", vectors)]
    if config.before:
        sources = [("before alignment", EmbeddingStore.open(config.before)), ("after alignment", vectors)]
    draw = lambda: token_pictures.scatter(  # noqa: E731
        sources, label, names, rows=config.points, of=of, method=config.picture
    )
    lead = (
        "Of an item's K nearest by cosine: their mean cosine, and the share in its own province, city and town "
        f"(district). NMI: k-means clusters of the embeddings against the region. The picture is "
        f"{'t-SNE' if config.picture == 'tsne' else 'PCA'}, coloured by region."
    )
    return page.section("The embeddings", lead, body + figures.png(draw, "embeddings by region"))


def _nowhere(count: int) -> tuple[NDArray[np.int64], list[str]]:
    return np.full(count, -1), []


def _numbers(measures: dict[str, Any]) -> str:
    return page.section("All numbers", "measures.json beside this page holds the same.", page.folded("show", measures))
