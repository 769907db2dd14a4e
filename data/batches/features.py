"""One description of features, from which batches, tables and the ranker's widths all follow.

Sequence features are looked up row by row in an EmbeddingCollection, once for each distinct item of a batch: the target
and the history take their rows from there. Pooled features are looked up in an EmbeddingBagCollection. Dense features
are numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import LABEL
from .settings import ACTIVITY_DIM, DENSE, FeatureConfig

HOURS_PER_WEEK = 168
ITEM_ATTRIBUTES = ("category", "brand", "price", "province", "city", "district")
DENSE_WIDTHS = dict(zip(DENSE, (2, 1, 2 * ACTIVITY_DIM), strict=True))
"""Dense features and how many columns each takes: log(1 + km) with a known flag; log(1 + visits); how active item and
user are (``data/batches/activity.py``)."""
OWN_WIDTH = 2
"""Columns of an own number: standardised, 0 where it is unknown, and a known flag."""
LEVEL, NGRAM = "semantic_", "prefix_"
"""Tables of semantic IDs: a level of the ID (semantic_1), or a prefix (prefix_2 is of the first two levels)."""
CLUSTER, USER_CLUSTER = "cluster", "user_cluster"
"""Tables of AKT-Rec's clusters of items, and of users."""
USER_TOKEN = "user_token"
"""The table of tokens that TIGER's users share."""
# Of torch's ModuleDict, which holds the tables (smart_apply is transformers', which adds it once a model is loaded): no
# name of a table. Written down, since prepare doesn't wait for torch.
_MODULE_NAMES = frozenset(
    [
        "T_destination",
        "add_module",
        "apply",
        "bfloat16",
        "buffers",
        "call_super_init",
        "children",
        "clear",
        "compile",
        "cpu",
        "cuda",
        "double",
        "dump_patches",
        "eval",
        "extra_repr",
        "float",
        "forward",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "half",
        "ipu",
        "items",
        "keys",
        "load_state_dict",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "pop",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "requires_grad_",
        "set_extra_state",
        "set_submodule",
        "share_memory",
        "smart_apply",
        "state_dict",
        "to",
        "to_empty",
        "train",
        "training",
        "type",
        "update",
        "values",
        "xpu",
        "zero_grad",
        "__annotations__",
        "__call__",
        "__class__",
        "__contains__",
        "__delattr__",
        "__delitem__",
        "__dict__",
        "__dir__",
        "__doc__",
        "__eq__",
        "__format__",
        "__ge__",
        "__getattr__",
        "__getattribute__",
        "__getitem__",
        "__getstate__",
        "__gt__",
        "__hash__",
        "__init__",
        "__init_subclass__",
        "__iter__",
        "__le__",
        "__len__",
        "__lt__",
        "__module__",
        "__ne__",
        "__new__",
        "__reduce__",
        "__reduce_ex__",
        "__repr__",
        "__setattr__",
        "__setitem__",
        "__setstate__",
        "__sizeof__",
        "__str__",
        "__subclasshook__",
        "__weakref__",
        "_apply",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_buffers",
        "_call_impl",
        "_compiled_call_impl",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_get_backward_hooks",
        "_get_backward_pre_hooks",
        "_get_name",
        "_is_full_backward_hook",
        "_load_from_state_dict",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_maybe_warn_non_full_backward_hook",
        "_modules",
        "_named_members",
        "_non_persistent_buffers_set",
        "_parameters",
        "_register_load_state_dict_pre_hook",
        "_register_state_dict_hook",
        "_replicate_for_data_parallel",
        "_save_to_state_dict",
        "_slow_forward",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_version",
        "_wrapped_call_impl",
    ]
)
_OWN_TABLES = {
    "item",
    "user",
    "user_final",
    "hour",
    "category_path",
    CLUSTER,
    USER_CLUSTER,
    USER_TOKEN,
    *ITEM_ATTRIBUTES,
}
_OWN_COLUMNS = {"positives", "last_positive"}
_OWN_PREFIXES = ("item_", "history_", LEVEL, NGRAM, "users_", "items_", "interactions_")
LONGEST_NAME = 120
"""Bytes of a table's name, at most: it is part of names of files."""
HISTORY_GAPS = 2
"""Columns of the history's gaps: log(1 + hours) since the visit, log(1 + km) from that place to the target item. Where
entries are clusters of visits (``data/visit_clusters.py``) the logarithm of their number follows."""


def table_name(column: str, of: str, always: bool = False) -> str:
    """The name of an own column's table, vocabulary and feature: the column's own wherever that can be.

    Tables are parts of modules and names of files, where "age.range", "age/range" and "type" can't be. Other
    characters than letters, digits, "_", "-" and spaces are written as in a URL ("age%2Erange"), and "users_" (or
    "items_", "interactions_") comes before names that placerank or PyTorch has already ("users_type", "users_city").
    Different columns of a table have different names.

    Args:
        column: its name in the raw table.
        of: that table.
        always: put the table's name before it in any case.

    Raises:
        ValueError: a name of more than ``LONGEST_NAME`` bytes.
    """
    name = re.sub(r"[^\w -]", lambda c: "".join(f"%{byte:02X}" for byte in c.group().encode()), column)
    taken = name in _MODULE_NAMES | _OWN_TABLES | _OWN_COLUMNS or name.startswith(_OWN_PREFIXES)
    name = f"{of}_{name}" if taken or always or not name else name
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{of}.parquet: column {column[:40]!r}... makes a name of {len(name.encode())} bytes, expected at most "
            f"{LONGEST_NAME}, since files are named after it; rename it"
        )
    return name


@dataclass(frozen=True)
class Table:
    """One embedding table: ``rows`` x ``dim`` float32, read by the features named.

    Pooled features of one sample are added up, or averaged if ``mean``.
    """

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    mean: bool = False


@dataclass(frozen=True)
class Own:
    """An own column among the features.

    Attributes:
        name: of the feature, and of what carries it: ``<name>_row``, ``_rows`` or ``_number`` of the catalog or the
            users, or ``SampleBatch.own``.
        of: whose it is.
        form: a row of a table, some rows, or a standardised number (NaN = none).
    """

    name: str
    of: Literal["item", "user", "request", "candidate"]
    form: Literal["row", "rows", "number"]


@dataclass(frozen=True)
class Features:
    """The resolved description: every table with its size, in the order in which batches carry the features."""

    sequence: tuple[Table, ...]
    pooled: tuple[Table, ...]
    dense: tuple[str, ...]
    context: bool = False
    """Whether batches carry a Context."""
    traits: bool = False
    """Whether batches carry Traits."""
    adaptive: bool = False
    """Whether radii of the contrast follow how dense it is around an item."""
    own: tuple[Own, ...] = ()
    """Own columns, in the order in which numbers stand among the dense features, after the others."""
    objectives: tuple[str, ...] = (LABEL,)
    """Columns that the ranker predicts, in the order in which it gives them."""
    amount: str | None = None
    """Which of them is an amount; the others are labels of 0 and 1."""
    weight: str | None = None
    """The column that says how much a sample counts in training."""
    cluster_visits: int = 1
    """Visits that an entry of a history stands for, at most."""

    @property
    def gaps(self) -> int:
        """Columns of the history's gaps."""
        return HISTORY_GAPS + (self.cluster_visits > 1)

    @property
    def numbers(self) -> list[Own]:
        return [o for o in self.own if o.form == "number"]

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.sequence + self.pooled

    @property
    def query_dim(self) -> int:
        """Columns of an item's rows side by side, the target's and those of the history."""
        return sum(t.dim for t in self.sequence)

    @property
    def pooled_dim(self) -> int:
        return sum(t.dim * len(t.features) for t in self.pooled)

    @property
    def dense_dim(self) -> int:
        return sum(DENSE_WIDTHS[name] for name in self.dense) + OWN_WIDTH * len(self.numbers)

    @property
    def item_keys(self) -> list[str]:
        return [t.features[0] for t in self.sequence]

    @property
    def pooled_keys(self) -> list[str]:
        return [feature for t in self.pooled for feature in t.features]

    @property
    def attributes(self) -> list[str]:
        """What ReST warms up items from and contrasts: attributes that target and history share."""
        return [
            t.name for t in self.sequence if t.name not in ("item", CLUSTER) and not t.name.startswith((LEVEL, NGRAM))
        ]


def generative_features(
    config: FeatureConfig,
    tables: dict[str, int],
    user_columns: list[str],
    semantic: dict[str, int],
    user_tokens: int | None = None,
    own: Sequence[dict[str, Any]] = (),
) -> Features:
    """As ``build_features``, of what a generative ranker sees: rows of visited items, and of the user.

    Args:
        config: the wanted features; ``pooled`` is of the user alone, and there are no dense ones.
        tables, user_columns: see ``build_features``.
        semantic: tables made of semantic IDs -> rows, row 0 included; prefixes, here rows of visited items.
        own: own columns as the manifest has them: those that join histories, and, in ``user_columns``, users'.
        user_tokens: tokens that users share, which are then all there is: TIGER knows items by their codes alone.

    Raises:
        ValueError: a pooled feature that the user doesn't have.
    """
    if user_tokens is not None:
        return Features((), (Table(USER_TOKEN, user_tokens + 1, config.pooled_dim, (USER_TOKEN,)),), ())
    d = config.embedding_dim
    sequence = [Table("item", tables["item"], d, ("item",))]
    joined = dict.fromkeys([*config.history_attributes, *_histories(config, _chosen(config, own))])
    sequence += [Table(n, tables[n], d, (f"item_{n}",)) for n in joined if tables.get(n, 1) > 1]
    sequence += [Table(n, rows, d, (f"item_{n}",)) for n, rows in semantic.items()]
    chosen, names = {c["name"] for c in _chosen(config, own)}, {c["name"] for c in own}
    known = ["user", *(n for n in user_columns if n in chosen or n not in names)]
    wanted = known if config.pooled is None else config.pooled
    for name in wanted:
        if name not in known:
            raise ValueError(f"features.pooled: got {name!r}, a generative ranker takes some of {', '.join(known)}")
    pooled = [Table(n, tables[n], config.pooled_dim, (n,)) for n in wanted]
    return Features(tuple(sequence), tuple(pooled), ())


def build_features(
    config: FeatureConfig,
    tables: dict[str, int],
    user_columns: list[str],
    context: bool = False,
    traits: bool = False,
    semantic: dict[str, int] | None = None,
    adaptive: bool = False,
    own: Sequence[dict[str, Any]] = (),
) -> Features:
    """Resolve a config against the vocabularies of a prepared folder.

    Args:
        config: the wanted features.
        tables: vocabulary name -> rows, row 0 included (the manifest's ``tables``).
        user_columns: names of the categorical user columns.
        context: whether batches carry a Context, for a tower that uses it.
        traits: whether batches carry Traits, for plug-ins.
        semantic: tables made of semantic IDs -> rows, row 0 included.
        adaptive: whether ReST's radii are density-adaptive.
        own: own columns as the manifest has them; those of users among ``user_columns`` are there too.

    An attribute that no item has (a vocabulary of one row, the out-of-vocabulary one) makes no table.

    Raises:
        ValueError: a feature that the data doesn't have.
    """
    mine = _chosen(config, own)
    in_history = _histories(config, mine)

    def present(names: list[str] | tuple[str, ...]) -> list[str]:
        return [n for n in names if tables.get(n, 1) > 1]

    shared = present([n for n in config.history_attributes if n in ITEM_ATTRIBUTES])
    d = config.embedding_dim
    sequence = [Table("item", tables["item"], d, ("item",))]
    sequence += [Table(n, tables[n], d, (f"item_{n}",)) for n in (*shared, *in_history)]
    semantic = semantic or {}
    sequence += [
        Table(n, rows, d, (f"item_{n}",)) for n, rows in semantic.items() if n.startswith(LEVEL) or n == CLUSTER
    ]

    rest = [n for n in present(ITEM_ATTRIBUTES) if n not in shared and n != "category"]
    of_users = [n for n in user_columns if n not in {c["name"] for c in own}]
    beside = {c["name"]: c for c in mine if c["table"] is not None and c["name"] not in in_history}
    known = ["user", "hour", *(["category_path"] if tables.get("category", 1) > 1 else []), *rest, *of_users, *beside]
    wanted = known if config.pooled is None else config.pooled
    pooled = []
    for name in wanted:
        if name not in known:
            raise ValueError(f"features.pooled: got {name!r}, this data has {', '.join(known)}")
        if name in beside:
            continue
        rows = {"hour": HOURS_PER_WEEK, "category_path": tables["category"]}.get(name) or tables[name]
        pooled.append(Table(name, rows, config.pooled_dim, (f"item_{name}" if name in rest else name,)))
    width = config.pooled_dim
    chosen = [beside[name] for name in wanted if name in beside]
    for table in dict.fromkeys(c["table"] for c in chosen):
        members = [c for c in chosen if c["table"] == table]
        dim = next((c["width"] for c in members if c["width"]), width)
        lists = any(c["kind"] == "list" for c in members)
        pooled.append(Table(table, tables[table], dim, tuple(map(_key, members)), mean=lists))
    ngrams = {n: rows for n, rows in semantic.items() if n.startswith(NGRAM)}
    pooled += [Table(n, rows, width, (f"item_{n}", f"history_{n}"), mean=True) for n, rows in ngrams.items()]
    pooled += [Table(n, rows, width, (n,)) for n, rows in semantic.items() if n == USER_CLUSTER]
    found = [c for c in mine if c in chosen or c["table"] is None or c["name"] in in_history]
    return Features(
        tuple(sequence), tuple(pooled), tuple(config.dense), context, traits, adaptive, tuple(map(_own, found))
    )


def _chosen(config: FeatureConfig, own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Own columns that are features; all there are unless the config names some."""
    there = {c["name"]: c for c in own}
    for name in config.own or ():
        if name not in there:
            raise ValueError(f"features.own: got {name!r}, this data has {', '.join(there) or 'none'}")
    return [c for n, c in there.items() if config.own is None or n in config.own]


def _histories(config: FeatureConfig, own: Sequence[dict[str, Any]]) -> list[str]:
    """Names of own columns that join target and history."""
    rows = {c["name"] for c in own if c["of"] == "items" and c["kind"] != "list" and c["table"] == c["name"]}
    for name in config.history_attributes:
        if name not in ITEM_ATTRIBUTES and name not in rows:
            raise ValueError(
                f"features.history_attributes: got {name!r}, expected some of {', '.join((*ITEM_ATTRIBUTES, *rows))}"
            )
    return [c["name"] for c in own if c["joins"] == "history" or c["name"] in config.history_attributes]


def _key(column: dict[str, Any]) -> str:
    """The feature of an own column that is pooled."""
    return f"item_{column['name']}" if column["of"] == "items" and column["kind"] != "list" else column["name"]


def form_of(kind: str) -> Literal["row", "rows", "number"]:
    """What an own column of a kind becomes: a row of its table, several, or a number; with it names in catalogs end."""
    return "rows" if kind == "list" else "number" if kind == "number" else "row"


def _own(column: dict[str, Any]) -> Own:
    of = {"items": "item", "users": "user"}.get(column["of"], column["joins"])
    return Own(column["name"], of, form_of(column["kind"]))
