"""Which cells make up each table: towers by variants."""

from dataclasses import dataclass, field, replace

from ...rankers.akt import AktConfig, akt_ladder
from ...rankers.rest import RestConfig, rest_preset

PLAIN = "none"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is put on a tower.

    Attributes:
        name: key of the cell.
        title: in tables.
        tokenizer: whose semantic IDs join the features; None: none do.
        aligned: whether those are of the embeddings given as --embeddings, not of the encoder as it comes.
        rest, akt: the plug-ins.
    """

    name: str
    title: str
    tokenizer: str | None = None
    aligned: bool = False
    rest: RestConfig = field(default_factory=RestConfig)
    akt: AktConfig = field(default_factory=AktConfig)


def _preset(name: str) -> RestConfig:
    """Centres are refreshed every 50 steps: a pass over these datasets has a few hundred."""
    return replace(rest_preset(name), refresh_every=50)


NONE = Variant(name=PLAIN, title="none")
HGIT = Variant(name="hgit", title="HGIT (LGSID)", tokenizer="hgit")
LGSID = Variant(name="lgsid", title="LGSID, aligned encoder", tokenizer="hgit", aligned=True)
REST = Variant(name="rest", title="ReST", rest=_preset("rest"))
TOKENS = (
    Variant(name="res_kmeans", title="Res-KMeans", tokenizer="res_kmeans"),
    Variant(name="rqvae", title="RQ-VAE", tokenizer="rqvae"),
    Variant(name="unified_sid", title="Lin et al.", tokenizer="unified_sid"),
    Variant(name="rqvae_ngram", title="RQ-VAE n-gram", tokenizer="rqvae_ngram"),
    HGIT,
)


def _rest(positive_km: float, negative_km: float) -> Variant:
    name = f"rest-{positive_km:g}-{negative_km:g}"
    config = replace(_preset("rest"), positive_km=positive_km, negative_km=negative_km)
    return Variant(name=name, title=f"ReST {positive_km:g} / {negative_km:g} km", rest=config)


def _ablations() -> tuple[Variant, ...]:
    without = ("alignment", "brand's loss", "category's loss", "warm-up")
    return tuple(
        Variant(name=f"rest-{n}", title=f"ReST-{n}: without {part}", rest=_preset(f"rest-{n}"))
        for n, part in enumerate(without, start=1)
    )


def _akt() -> tuple[Variant, ...]:
    titles = {
        "cluster": "+ cluster embedding",
        "one_way": "+ one-way loss",
        "gate": "+ gate",
        "views": "+ views (AKT-Rec)",
    }
    ladder = akt_ladder()
    return tuple(Variant(name=f"akt-{n}", title=t, tokenizer="hgit", akt=ladder[n]) for n, t in titles.items())


AKT = _akt()
ALL = Variant(name="all", title="LGSID + ReST + AKT-Rec", tokenizer="hgit", rest=REST.rest, akt=AKT[-1].akt)

Grid = dict[str, tuple[Variant, ...]]
"""By tower, its variants, the plain one first."""

TABLES: dict[str, Grid] = {
    "lgsid": {tower: (NONE, *TOKENS) for tower in ("din", "dien", "sim", "twin", "eta")},
    "rest": {
        "din": (NONE, REST, _rest(5, 5), _rest(10, 5), _rest(float("inf"), float("inf")), *_ablations()),
        "trisan": (NONE, REST),
        "basm": (NONE, REST),
    },
    # HGIT alone is the base of the ladder: with clusters come the semantic IDs that they are made of
    "akt": {tower: (NONE, HGIT, *AKT) for tower in ("din", "twin")},
    "whole": {tower: (NONE, HGIT, REST, AKT[-1], ALL) for tower in ("din", "twin")},
}


def grid_of(table: str, aligned: bool) -> Grid:
    """The cells of a table; with aligned embeddings LGSID's has a row more."""
    grid = TABLES[table]
    return {tower: (*variants, LGSID) for tower, variants in grid.items()} if aligned and table == "lgsid" else grid
