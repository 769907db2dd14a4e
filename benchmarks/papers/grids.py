"""Which cells make up each table: towers by variants."""

from dataclasses import dataclass, field, replace

from ...rankers.plugins.akt import AktConfig, akt_ladder
from ...rankers.plugins.rest import RestConfig, rest_preset

PLAIN = "none"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is put on a tower.

    Attributes:
        name: key of the cell.
        title: in tables.
        tokenizer: whose semantic IDs join the features; None: none do.
        aligned: whether those are of the embeddings given as --embeddings, not of the encoder as it comes.
        codes: a level of theirs, where not the budget's.
        user_history: last places whose mean vector makes a user's semantic ID; None: users have none.
        activity: whether the tower is given as dense features what AKT-Rec's gate and views see of item and user.
        bare: whether items have their id alone, no category, brand or region.
        base: the variant that differences are to.
        rest, akt: the plug-ins.
    """

    name: str
    title: str
    tokenizer: str | None = None
    aligned: bool = False
    codes: int | None = None
    user_history: int | None = None
    activity: bool = False
    bare: bool = False
    base: str = PLAIN
    rest: RestConfig = field(default_factory=RestConfig)
    akt: AktConfig = field(default_factory=lambda: AktConfig(enabled=False))


def _preset(name: str) -> RestConfig:
    """Centres are refreshed every 50 steps: a pass over these datasets has a few hundred."""
    return replace(rest_preset(name), refresh_every=50)


NONE = Variant(name=PLAIN, title="none")
ACTIVITY = Variant(name="activity", title="activity as a feature", activity=True)
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
        "gate": "AKT-Rec (+ gate)",
        "users": "+ users' clusters",
        "views": "+ views (all of the paper)",
    }
    ladder = akt_ladder()
    return tuple(Variant(name=f"akt-{n}", title=t, tokenizer="hgit", akt=ladder[n]) for n, t in titles.items())


ABLATIONS = _ablations()
WITHOUT_WARM_UP = ABLATIONS[-1]
LADDER = _akt()
AKT = next(variant for variant in LADDER if variant.akt == AktConfig(enabled=True))
ALL = replace(AKT, name="all", title="LGSID + ReST + AKT-Rec", rest=REST.rest)

MENDED = (
    replace(REST, name="rest-weight-0.1", title="ReST, weight 0.1", rest=replace(REST.rest, weight=0.1)),
    replace(REST, name="rest-weight-1", title="ReST, weight 1", rest=replace(REST.rest, weight=1.0)),
    replace(REST, name="rest-warm-up", title="ReST's warm-up alone", rest=replace(REST.rest, contrast=[])),
    replace(HGIT, name="hgit-512", title="HGIT, 512 codes a level", codes=512),
    replace(AKT, name="akt-512", title="AKT-Rec, 512 clusters", codes=512),
    replace(AKT, name="akt-weight-0.1", title="AKT-Rec, weight 0.1", akt=replace(AKT.akt, one_way_weight=0.1)),
)
"""Ways to mend a missing gain, tried on DIN: of the plug-ins' own numbers, none of the baseline's."""

CODES = (16, 32, 64, 128, 256, 512)
CODEBOOKS = tuple(replace(AKT, name=f"akt-codes-{n}", title=f"AKT-Rec, {n} codes a level", codes=n) for n in CODES)
"""How many codes a level for how many items? AKT-Rec's clusters are those of the first level."""

ALL_MENDED = (
    replace(ALL, name="all-contrast", title="all, ReST without warm-up", rest=WITHOUT_WARM_UP.rest),
    replace(ALL, name="all-warm-up", title="all, ReST without contrast", rest=replace(REST.rest, contrast=[])),
)
"""AKT-Rec's gate and ReST's warm-up both change an item's embedding: which part of ReST goes with AKT-Rec?"""

BARE = Variant(name="bare", title="ids alone", bare=True)
BARE_TOKENS = tuple(
    replace(v, name=f"bare-{v.name}", title=f"ids alone + {v.title}", bare=True, base=BARE.name) for v in TOKENS
)
"""Do semantic IDs bring what the plain towers already have from category, brand and region?"""

BEYOND = (
    WITHOUT_WARM_UP,
    *(
        replace(v, name=f"{v.name}-adaptive", title=f"{v.title}, radii by density",
                rest=replace(v.rest, density_adaptive=True))
        for v in (REST, WITHOUT_WARM_UP)
    ),
    *(
        replace(REST, name=f"rest-dropout-{p}", title=f"ReST, attributes dropped: {p:.0%}",
                rest=replace(REST.rest, attribute_dropout=p))
        for p in (0.2, 0.5, 0.8)
    ),
)  # fmt: skip
"""What ReST's text leaves open."""

AKT_USERS = next(variant for variant in LADDER if variant.name == "akt-users")
USER_IDS = tuple(
    replace(AKT, name=f"akt-user-ids-{n}", title=f"+ users' semantic IDs, of {n} places", user_history=n)
    for n in (50, 5)
)
"""Clusters of users: none, the most frequent cluster of what they visit, or of semantic IDs of their own."""

Grid = dict[str, tuple[Variant, ...]]
"""By tower, its variants, the plain one first."""

TABLES: dict[str, Grid] = {
    "lgsid": {tower: (NONE, *TOKENS) for tower in ("din", "dien", "sim", "twin", "eta")},
    "rest": {
        "din": (NONE, REST, _rest(5, 5), _rest(10, 5), _rest(float("inf"), float("inf")), *ABLATIONS),
        "trisan": (NONE, REST, WITHOUT_WARM_UP),
        "basm": (NONE, REST, WITHOUT_WARM_UP),
    },
    # HGIT alone is the base of the ladder: with clusters come the semantic IDs that they are made of
    "akt": {tower: (NONE, ACTIVITY, HGIT, *LADDER) for tower in ("din", "twin")},
    "mend": {
        "din": (NONE, REST, HGIT, AKT, *MENDED, BARE, *BARE_TOKENS),
        "twin": (NONE, REST, WITHOUT_WARM_UP, AKT, ALL, *ALL_MENDED),
    },
    "codes": {"twin": (NONE, *CODEBOOKS)},
    "robust": {tower: (NONE, HGIT) for tower in ("din", "dien", "sim", "twin", "eta")},
    "beyond": {"din": (NONE, REST, *BEYOND)},
    "users": {tower: (AKT, *(replace(v, base=AKT.name) for v in (AKT_USERS, *USER_IDS))) for tower in ("twin", "din")},
    "users_frequent": {
        tower: (AKT_USERS, *(replace(v, base=AKT_USERS.name) for v in USER_IDS)) for tower in ("twin", "din")
    },
    "towers": {tower: (NONE,) for tower in ("twin", "din", "hstu")},
    "rule": {"twin": (NONE, WITHOUT_WARM_UP, AKT)},
    "whole": {tower: (NONE, HGIT, REST, AKT, ALL) for tower in ("din", "twin")},
}


def grid_of(table: str, aligned: bool) -> Grid:
    """The cells of a table; with aligned embeddings LGSID's has a row more."""
    grid = TABLES[table]
    return {tower: (*variants, LGSID) for tower, variants in grid.items()} if aligned and table == "lgsid" else grid
