"""A ranker outside of training: exported tables, the exported dense part, and the catalog.

An export folder holds all that scoring needs:

    manifest.json      versions, what it was made from, tables with rows, dim, format and dtype, hashes of all files
    features.json      which table serves which feature, in the order in which the dense part takes them
    catalog.parquet    attributes of items by row; column item_id
    users.parquet      attributes of users by row; column user_id
    tables/            one file a table, keyed by raw ids: see ``embeddings/export.py``
    scorer.pt2         the dense part; ``torch.export.load`` reads it without placerank

``scorer.pt2`` takes these, for B candidates with T history entries in all, and gives logits float32 [B]; the
click probability is their sigmoid. Where ``objectives`` in features.json has several names it gives float32 [B, K], a
column each: a label's probability is the sigmoid, what is expected of the amount (``amount``) the exponential. B, T and
U are free, T may be 0. No device is written into the program: it runs where its weights are moved to
(``program.module().to("cuda")``), on inputs there.

    items     float32 [U, D]   for each of ``sequence`` in features.json an item's row of the table, side by side;
                               an item that is met more than once needs one row only
    target    int64   [B]      which of the items is the candidate
    visits    int64   [T]      which of them the history has, oldest first
    offsets   int64   [B+1]    the history of candidate b is visits[offsets[b]:offsets[b+1]]
    gaps      float32 [T, 2]   log(1 + hours since the visit), log(1 + km from that place to the candidate); [T, 3] if
                               ``cluster_visits`` is above 1: then log of the visits that the entry stands for
    pooled    float32 [B, P]   for each of ``pooled``, and each of its features, the sum (or mean, if ``mean``) of the
                               candidate's rows of the table, side by side
    dense     float32 [B, F]   for each of ``dense``: distance gives log(1 + km) (0 if unknown) and 1 if known else 0;
                               visits gives log(1 + the user's earlier visits to the candidate); then for each of
                               ``own`` that is a number its value (0 if unknown) and 1 if known else 0
    context   a tuple of seven tensors, for towers that use it: ``Context`` in ``data/batches/dense_batch.py``
    traits    a tuple of three tensors, for plug-ins: ``Traits`` there. A program for a tower that uses no context takes
              None in its place

``ExportedRanker`` does all of it from samples; its ``own_values`` makes their own columns of raw values.
"""

import json
import logging
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import JaggedTensor

from ..data.batches.activity import ACTIVITY_DIM
from ..data.batches.batch import RankingBatch, SampleBatch
from ..data.batches.catalog import Catalog
from ..data.batches.features import Features, Own, Table
from ..data.manifest import read_manifest, write_json
from ..data.preparation.buckets import hashed
from ..data.preparation.own import Extra, bucket_of
from ..data.urls import fetched, place
from ..embeddings.reader import TABLES, EmbeddingTable, open_table
from ..kernels.jagged import shared_rows_unchecked
from .dense import Scorer

FEATURES, SCORER = "features.json", "scorer.pt2"
log = logging.getLogger(__name__)
aten = torch.ops.aten
_LOADING = threading.Lock()  # torch.export.load is for one thread at a time (pytorch/pytorch#195099, open)
_ANY: dict[str, Any] = {"name": "", "column": "", "of": "request"}


def save_features(features: Features, file: Path) -> None:
    """Write a description of features as JSON."""
    write_json(file, asdict(features))


def load_features(file: Path) -> Features:
    """The description that ``save_features`` wrote."""
    plain = json.loads(file.read_text())
    tables = lambda key: tuple(Table(**{**t, "features": tuple(t["features"])}) for t in plain[key])  # noqa: E731
    rest = {name: plain[name] for name in ("context", "traits", "adaptive")}
    if "objectives" in plain:  # an export of before there were several has one
        rest |= {"objectives": tuple(plain["objectives"]), "amount": plain["amount"], "weight": plain["weight"]}
    own = tuple(Own(**column) for column in plain.get("own", ()))  # older exports have none
    rest["cluster_visits"] = plain.get("cluster_visits", 1)
    return Features(tables("sequence"), tables("pooled"), tuple(plain["dense"]), **rest, own=own)


def export_scorer(scorer: Scorer, features: Features, file: Path) -> None:
    """Write the dense part as a program of its own, for any number of candidates and history entries, on any device.

    Raises:
        ValueError: the tower does something that ``torch.export`` can't take.
    """
    torch.export.save(trace_scorer(scorer, features), file)


def trace_scorer(scorer: Scorer, features: Features) -> ExportedProgram:
    """The program that ``export_scorer`` writes; raises as it does."""
    samples, entries, items = 3, 5, 4
    example: tuple[Any, ...] = (
        torch.zeros(items, features.query_dim),
        torch.zeros(samples, dtype=torch.int64),
        torch.zeros(entries, dtype=torch.int64),
        torch.tensor([0, 2, 2, entries]),
        torch.zeros(entries, features.gaps),
        torch.zeros(samples, features.pooled_dim),
        torch.zeros(samples, features.dense_dim),
    )
    B, T, U = Dim("samples", min=0), Dim("entries", min=0), Dim("items", min=0)
    shapes: tuple[Any, ...] = ({0: U}, {0: B}, {0: T}, {0: B + 1}, {0: T}, {0: B}, {0: B})
    # A tensor each, or the program takes two for one; and plain tuples, since a file with a type of ours in it could
    # not be loaded without placerank.
    if features.context:
        numbers = [torch.zeros(n, dtype=torch.int64) for n in (samples, samples, entries, entries)]
        places = [torch.zeros(n, 3) for n in (samples, samples, entries)]
        example += ((*numbers[:2], *places[:2], *numbers[2:], *places[2:]),)
        shapes += (tuple({0: n} for n in (B, B, B, B, T, T, T)),)
    if features.traits:
        attributes = torch.zeros(items, len(features.attributes), dtype=torch.int64)
        unused = () if features.context else (None,)
        example += (*unused, (attributes, *(torch.zeros(n, ACTIVITY_DIM) for n in (items, samples))))
        shapes += (*unused, ({0: U}, {0: U}, {0: B}))
    # Without deferred checks a single sample, or no history at all, would be refused.
    try:
        with torch.no_grad():
            program = torch.export.export(
                scorer.eval(),
                example,
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise ValueError(f"torch.export can't take the tower {type(scorer.tower).__name__}: {error}") from error
    _name_no_device(program.graph_module)
    return program


def _name_no_device(program: fx.GraphModule) -> None:
    """Take the device that a program was traced on out of it, so that it runs where its weights and inputs are.

    What it makes from nothing it then makes like one of its arguments (0, 1 .. n - 1 is a running sum of ones), and its
    checks of dtypes let any device pass. What else names a device is left as it is, and told.
    """
    for module in [m for m in program.modules() if isinstance(m, fx.GraphModule)]:
        tensors = (n for n in module.graph.find_nodes(op="placeholder") if isinstance(n.meta.get("val"), Tensor))
        argument = next(tensors, None)
        for node in [n for n in module.graph.nodes if n.kwargs.get("device") is not None]:
            if node.target is aten._assert_tensor_metadata.default:
                node.update_kwarg("device", None)
            elif argument is None or not _made_like(argument, node):
                log.warning("%s runs on %s alone: it has %s there", SCORER, node.kwargs["device"], node.target)
        module.recompile()


_LIKE_ANOTHER = {
    aten.zeros.default: aten.new_zeros.default,
    aten.ones.default: aten.new_ones.default,
    aten.full.default: aten.new_full.default,
    aten.empty.memory_format: aten.new_empty.default,
}
"""What makes a tensor on a device that it is given, and what makes the same on another tensor's."""


def _made_like(argument: fx.Node, node: fx.Node) -> bool:
    """Replace a node that makes a tensor by one that makes it on the argument's device; False if it is of no such kind.

    The example values that a program keeps of each node are made along.
    """
    graph, dtype = node.graph, node.meta["val"].dtype

    def call(operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = graph.call_function(operation, args, kwargs)
        examples = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with argument.meta["val"].fake_mode:
            new.meta["val"] = operation(*examples[0], **examples[1])
        return new

    with graph.inserting_before(node):
        if node.target in _LIKE_ANOTHER:
            new = call(_LIKE_ANOTHER[node.target], argument, *node.args, dtype=dtype)
        elif node.target is aten.arange.default and not isinstance(node.args[0], float):
            ones = call(aten.new_ones.default, argument, [node.args[0]], dtype=torch.int64)
            numbers = call(aten.sub.Tensor, call(aten.cumsum.default, ones, 0), 1)
            new = numbers if dtype == torch.int64 else call(aten._to_copy.default, numbers, dtype=dtype)
        else:
            return False
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return True


class ExportedRanker:
    """Scores samples on the CPU from an export folder alone.

    Args:
        features: which tables serve which features.
        catalog: attributes by row.
        tables: exported tables by name.
        scorer: the loaded dense part.
        own: what own columns are, by name, as the manifest has it.
    """

    def __init__(
        self,
        features: Features,
        catalog: Catalog,
        tables: dict[str, EmbeddingTable],
        scorer: nn.Module,
        own: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.features, self.catalog, self.tables, self.scorer = features, catalog, tables, scorer
        self.own = own or {}

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Self:
        """Read an export folder.

        Args:
            folder: what ``placerank export`` wrote; one behind a URL is fetched.
            verify: compare the hash of every file with the manifest's first: 0.7 s a GB, see ``load_table``. Without
                it sizes alone are compared.

        Raises:
            FileNotFoundError, ValueError: not an export folder, not a whole one, or a damaged one.
        """
        folder = fetched(place(folder))
        manifest = read_manifest(folder, "export", verify)
        exported: dict[str, Any] = manifest["tables"]
        if not (folder / SCORER).is_file():
            raise ValueError(
                f"{folder} has no {SCORER}: its ranker is a generative one; read it with ExportedGenerator"
            )
        features = load_features(folder / FEATURES)
        needed = {t.name for t in features.tables}
        tables = {n: open_table(folder / TABLES, n, table) for n, table in exported.items() if n in needed}
        with _LOADING:
            scorer = torch.export.load(folder / SCORER).module()
        own = {column["name"]: column for column in manifest.get("own", ())}
        return cls(features, Catalog.load(folder, features), tables, scorer, own)

    def own_values(self, name: str, values: pa.Array) -> Tensor:
        """Raw values of a column of interactions as ``SampleBatch.own`` takes them.

        Args:
            name: of the feature.
            values: text of a category (anything that casts to it), or numbers, null or not finite where there is none,
                [N]; a date is the hours from the request's time to it.

        Returns:
            int64 rows of the column's table, 0 for what it does not know, or float32, standardised, NaN for none; [N].

        Raises:
            ValueError: no such column of interactions, or values that can't be its.
        """
        known = {n: column for n, column in self.own.items() if column["of"] == "interactions"}
        if name not in known:
            raise ValueError(f"own_values: got {name!r}, this ranker's interactions have {', '.join(known) or 'none'}")
        column = known[name]
        category = column["kind"] == "category"
        try:
            values = values.cast(pa.string() if category else pa.float32())
        except pa.ArrowException as error:
            wanted = "text, or what can be written as text" if category else "numbers"
            raise ValueError(f"{name}: got values of type {values.type}, expected {wanted}: {error}") from error
        if category:
            text = values
            table = self.tables[column["table"]]
            if pa.types.is_string(table.ids.type):
                return table.rows(text)
            rows = Extra(form="hashed", size=len(table) - 1, **_ANY).of_values(hashed(pa.chunked_array([text])))
            return torch.from_numpy(rows).long()
        numbers = values.fill_null(float("nan")).to_numpy()
        numbers = np.where(np.isfinite(numbers), numbers, np.float32(np.nan))
        if column["kind"] == "number":
            form = Extra(form="number", mean=column["mean"], scale=column["scale"], **_ANY)
            return torch.from_numpy(form.of_values(numbers))
        return torch.from_numpy(bucket_of(numbers, np.array(column["edges"]))).long()

    def looked_up(self, sample: SampleBatch) -> tuple[RankingBatch, list[Tensor], Tensor]:
        """A batch of samples, rows of its distinct items by sequence table, float32 [U, D], and pooled features [B, P].

        Raises:
            ValueError: a table that the ranker needs was not exported.
        """
        missing = [t.name for t in self.features.tables if t.name not in self.tables]
        if missing:
            raise ValueError(
                f"scoring needs the tables {', '.join(missing)}, which this export leaves out; export all tables"
            )
        batch = self.catalog.expand(sample)
        items, pooled = batch.items.to_dict(), batch.pooled.to_dict()
        rows = [self.tables[t.name].vectors(items[t.features[0]].values()) for t in self.features.sequence]
        parts = [self._pool(t, pooled[key]) for t in self.features.pooled for key in t.features]
        return batch, rows, torch.cat(parts, dim=1)

    @torch.no_grad()
    def score(self, sample: SampleBatch) -> Tensor:
        """Logits of samples, float32 [B]; of several objectives [B, K], in the order of ``features.objectives``.

        Labels' columns are logits of their probability at an impression, the amount's is the logarithm of what is
        expected of it; ``predict`` gives both as what they are.

        Raises:
            ValueError: a table that the ranker needs was not exported.
        """
        batch, rows, pooled = self.looked_up(sample)
        dense = batch.dense
        visits = dense.visits
        if dense.starts is not None:  # a program takes candidates alone, each with its own history
            visits = visits[shared_rows_unchecked(dense.starts, dense.offsets, len(dense.history_gaps))]
        logits: Tensor = self.scorer(
            torch.cat(rows, dim=1),
            dense.target,
            visits,
            dense.offsets,
            dense.history_gaps,
            pooled,
            dense.features,
            *([tuple(dense.context)] if dense.context else [None] if dense.traits else []),
            *([tuple(dense.traits)] if dense.traits else []),
        )
        return logits

    def predict(self, sample: SampleBatch) -> dict[str, Tensor]:
        """Probability of each label, and expected amount, by name: float32 [B].

        Raises:
            ValueError: as ``score``.
        """
        return self.probabilities(self.score(sample))

    def probabilities(self, outputs: Tensor) -> dict[str, Tensor]:
        """What ``predict`` gives, of what ``score`` gave."""
        columns = outputs.unbind(1) if outputs.dim() > 1 else (outputs,)
        return {
            name: z.exp() if name == self.features.amount else z.sigmoid()
            for name, z in zip(self.features.objectives, columns, strict=True)
        }

    def _pool(self, table: Table, rows: JaggedTensor) -> Tensor:
        vectors = self.tables[table.name].vectors(rows.values())
        if len(vectors) == len(rows.lengths()) and bool((rows.lengths() == 1).all()):  # nothing to add up
            return vectors
        members = torch.arange(len(vectors))
        mode = "mean" if table.mean else "sum"
        return F.embedding_bag(members, vectors, rows.offsets().long(), mode=mode, include_last_offset=True)
