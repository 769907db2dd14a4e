"""Tables from checkpoints to files and back."""

import errno
import itertools
import json
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.distributed.types import ShardedTensor

from placerank.data.batches.features import Features, Table
from placerank.data.manifest import whole_folder, write_manifest
from placerank.embeddings.export import RawIds, export_tables
from placerank.embeddings.quantize import DTYPES, pack, packed_layout, unpack
from placerank.embeddings.reader import EmbeddingTable, load_table, open_table
from placerank.embeddings.shards import CheckpointTables
from placerank.rankers.dense import RankerConfig
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig

ROWS, DIM, BLOCK = 101, 8, 16


def save(path: Path, tables: dict[str, Tensor]) -> CheckpointTables:
    """A checkpoint with these tables and things beside them, by one process."""
    state = {f"model.embeddings.sequence.embeddings.{name}.weight": t for name, t in tables.items()}
    state |= {"model.scorer.bias": torch.ones(3), "optimizer.state.item": torch.ones(ROWS)}
    with warnings.catch_warnings(action="ignore"):
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    return CheckpointTables(path)


def ids_of(folder: Path, values: list[Any]) -> RawIds:
    pq.write_table(pa.table({"value": values}), folder / "ids.parquet", row_group_size=7)
    return RawIds.read(folder / "ids.parquet")


TEXT = [None, *(f"p{i * 37 % 1000:03d}é" for i in range(1, ROWS))]
NUMBERS = [None, *(i * 37 % 1000 - 500 for i in range(1, ROWS))]


@pytest.fixture
def table() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, ROWS)[:, None]


def limits(table: Tensor, dtype: str) -> Tensor:
    """How far a value may be off, by row: half a step, and the rounding of the step and the start themselves."""
    span = table.amax(1, keepdim=True) - table.amin(1, keepdim=True)
    if dtype == "int8":
        return span / 255 * 0.5 * (1 + 1e-5)
    rounding = table.abs().amax(1, keepdim=True) * 2**-11
    return span / 15 * 0.5 * (1 + 2**-10) + 2 * rounding


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        *itertools.product(("parquet", "safetensors", "npy"), DTYPES),
        *itertools.product(("faiss", "faiss-hnsw"), ("fp32", "fp16")),
    ],
)
@pytest.mark.parametrize("ids", [TEXT, NUMBERS], ids=["text", "numbers"])
def test_there_and_back(format: str, dtype: str, ids: list[Any], table: Tensor, tmp_path: Path) -> None:
    tables = save(tmp_path / "c", {"item": table})
    written = export_tables(tables, {"item": ids_of(tmp_path, ids)}, tmp_path, format, dtype, BLOCK)
    assert written == {"item": {"rows": ROWS, "dim": DIM, "format": format, "dtype": dtype, "file": f"item.{format}"}}
    read = open_table(tmp_path, "item", written["item"])
    assert read.ids.to_pylist() == ids
    vectors = read.vectors()
    if dtype == "fp32":
        assert torch.equal(vectors, table)
    elif dtype == "fp16":
        assert torch.equal(vectors, table.half().float())
    else:
        assert ((vectors - table).abs() <= limits(table, dtype)).all()
    assert torch.equal(read.vectors(torch.tensor([[3, 0], [3, 100]])), vectors[torch.tensor([[3, 0], [3, 100]])])
    unknown: Any = "nowhere" if ids is TEXT else 9999
    assert torch.equal(read.lookup([ids[100], unknown, None, ids[1], ids[100]]), vectors[[100, 0, 0, 1, 100]])
    assert read.lookup(pa.array([], read.ids.type)).shape == (0, DIM)


def test_libraries_read_the_files(table: Tensor, tmp_path: Path) -> None:
    """Without placerank: the formats are what their names say."""
    import faiss
    from safetensors.torch import load_file

    tables, ids = save(tmp_path / "c", {"item": table}), {"item": ids_of(tmp_path, NUMBERS)}
    for format in ("parquet", "safetensors", "npy", "faiss"):
        export_tables(tables, ids, tmp_path, format, "fp32", BLOCK)
    assert torch.equal(load_file(tmp_path / "item.safetensors")["vector"], table)
    assert np.array_equal(np.load(tmp_path / "item.npy"), table.numpy())
    assert pq.ParquetFile(tmp_path / "item.parquet").num_row_groups == -(-ROWS // BLOCK)
    assert pq.read_table(tmp_path / "item.parquet")["vector"].to_pylist() == table.tolist()
    index = faiss.read_index(str(tmp_path / "item.faiss"))
    assert index.ntotal == ROWS - 1
    query = table[5:6].numpy()
    _, found = index.search(query, 3)
    best = (table[1:] @ table[5]).topk(3).indices + 1
    assert found[0].tolist() == [NUMBERS[i] for i in best]
    assert np.array_equal(index.reconstruct(NUMBERS[7]), table[7].numpy())


def test_faiss_labels_of_text_ids_are_rows(table: Tensor, tmp_path: Path) -> None:
    import faiss

    tables = save(tmp_path / "c", {"item": table})
    export_tables(tables, {"item": ids_of(tmp_path, TEXT)}, tmp_path, "faiss", "fp16", BLOCK)
    index = faiss.read_index(str(tmp_path / "item.faiss"))
    assert faiss.vector_to_array(index.id_map).tolist() == list(range(1, ROWS))


def test_the_graph_finds_what_the_exact_index_does(tmp_path: Path) -> None:
    """Nearly all of it; an empty table too."""
    import faiss

    g = torch.Generator().manual_seed(0)
    centres = torch.randn(40, DIM, generator=g)
    many = centres[torch.randint(40, (3000,), generator=g)] + 0.3 * torch.randn(3000, DIM, generator=g)
    ids = [None, *range(1000, 3999)]
    for rows in (3000, 1):
        indices = []
        for format in ("faiss", "faiss-hnsw"):
            folder = tmp_path / f"{format}-{rows}"
            tables = save(folder / "c", {"item": many[:rows]})
            export_tables(tables, {"item": ids_of(folder, ids[:rows])}, folder, format, "fp32", 512)
            indices.append(faiss.read_index(str(folder / f"item.{format}")))
            assert indices[-1].ntotal == rows - 1
        if rows > 1:
            exact, graph = (index.search(many[:200].numpy(), 10)[1] for index in indices)
            shared = [len({*a} & {*b}) for a, b in zip(exact, graph, strict=True)]
            assert sum(shared) > 0.9 * 2000 and set(graph.ravel().tolist()) <= set(ids[1:])
            assert faiss.downcast_index(indices[1].index).hnsw.efSearch == 64, "the file keeps it"


def test_table_without_vocabulary(table: Tensor, tmp_path: Path) -> None:
    """The hours of the week: every row has an id, so an unknown one has nowhere to go."""
    for format in ("parquet", "npy", "faiss", "faiss-hnsw"):
        tables = save(tmp_path / format, {"hour": table})
        written = export_tables(tables, {"hour": RawIds(ROWS)}, tmp_path, format, "fp32", BLOCK)
        hours = open_table(tmp_path, "hour", written["hour"])
        assert torch.equal(hours.lookup([0, 100]), table[[0, 100]])
        with pytest.raises(KeyError, match="table 'hour' has no id 101, and no row for unknown ids"):
            hours.lookup([0, 101])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_ids_of_row_groups_of_any_size_come_in_blocks_of_one(rows: int, group: int, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"value": range(rows)}), f"{folder}/i", row_group_size=group)
        blocks = list(RawIds.read(Path(folder, "i")).blocks(block))
    assert [len(b) for b in blocks[:-1]] == [block] * (len(blocks) - 1)
    assert pa.concat_arrays(blocks).to_pylist() == list(range(rows))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=9),
    st.sampled_from(DTYPES),
)
def test_unpack_undoes_pack(rows: list[list[float]], dtype: str) -> None:
    table = torch.tensor(rows)
    packed = pack(table, dtype)
    kind, width = packed_layout(4, dtype)
    assert packed.shape == (len(rows), width) and packed.dtype == kind
    error = (unpack(packed, dtype) - table).abs()
    if dtype == "fp32":
        assert error.max() == 0
    elif dtype == "fp16":
        assert (error <= table.abs() * 2**-11 + 2**-25).all()
    else:
        tiny = table.abs().amax(1, keepdim=True) * 1e-6 + 1e-6
        assert (error <= limits(table, dtype) + tiny).all()


def strided(table: Tensor) -> list[Tensor]:
    """The same numbers in other orders of memory: columns of a wider table, column by column, every other row."""
    wide, tall = torch.randn(len(table), 3 * table.shape[1]), torch.randn(2 * len(table), table.shape[1])
    wide[:, 5 : 5 + table.shape[1]], tall[::2] = table, table
    return [wide[:, 5 : 5 + table.shape[1]], table.T.contiguous().T, tall[::2]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_strides_are_packed_and_unpacked(dtype: str, table: Tensor) -> None:
    packed = pack(table, dtype)
    for view in strided(table):
        assert np.array_equal(pack(view, dtype), packed) and not view.is_contiguous()
    back = unpack(packed, dtype)
    for rows in (slice(None, None, 2), slice(None, None, -1), slice(3, 60, 7)):
        assert torch.equal(unpack(packed[rows], dtype), back[torch.arange(ROWS).numpy()[rows].tolist()])
    assert torch.equal(unpack(np.asfortranarray(packed), dtype), back)


class Computed:
    """A table in memory, as a source for export."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def shape(self, name: str) -> tuple[int, int]:
        return ROWS, DIM

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        yield from self.table.split(block_rows)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [*itertools.product(("parquet", "safetensors", "npy"), DTYPES), ("faiss", "fp32"), ("faiss", "fp16")],
)
def test_blocks_of_any_strides_export_the_same_file(format: str, dtype: str, table: Tensor, tmp_path: Path) -> None:
    ids, files = {"item": ids_of(tmp_path, NUMBERS)}, []
    for number, view in enumerate((table, *strided(table))):
        (tmp_path / f"{number}").mkdir()
        export_tables(Computed(view), ids, tmp_path / f"{number}", format, dtype, BLOCK)
        files.append({p.name: p.read_bytes() for p in (tmp_path / f"{number}").iterdir()})
    assert all(each == files[0] for each in files)


def test_blocks_that_are_not_what_was_said_are_told(table: Tensor, tmp_path: Path) -> None:
    ids = {"item": ids_of(tmp_path, NUMBERS)}
    with pytest.raises(ValueError, match=r"table 'item', row 16: got a block \(85, 8\), expected \(16, 8\)"):
        source = Computed(table)
        source.blocks = lambda name, n: iter((table[:n], table[n:]))  # type: ignore[method-assign]
        export_tables(source, ids, tmp_path, "npy", "fp32", BLOCK)
    with pytest.raises(ValueError, match=r"row 0: got a block \(16, 4\), expected \(16, 8\)"):
        export_tables(Computed(table[:, :4]), ids, tmp_path, "npy", "fp32", BLOCK)
    with pytest.raises(ValueError, match=r"rows to pack: got torch.float64 \(16, 8\), expected torch.float32"):
        export_tables(Computed(table.double()), ids, tmp_path, "npy", "fp32", BLOCK)
    with pytest.raises(ValueError, match="packs two columns into a byte, the table has 7"):
        pack(table[:, :7], "int4")


@pytest.mark.parametrize("format", ["parquet", "safetensors", "npy", "faiss"])
def test_pandas_is_told_that_integer_ids_are_integers(format: str, table: Tensor, tmp_path: Path) -> None:
    """Read as float64, as pandas does with a column that has a null, ids over 2**53 are rounded."""
    files = {"parquet": "item.parquet"}
    for type, told in ((pa.int64(), "Int64"), (pa.int32(), "Int32"), (pa.string(), None)):
        pq.write_table(pa.table({"value": pa.array(NUMBERS).cast(type)}), tmp_path / "ids")
        export_tables(Computed(table), {"item": RawIds.read(tmp_path / "ids")}, tmp_path, format)
        schema = pq.read_schema(tmp_path / files.get(format, "item.ids.parquet"))
        note = json.loads((schema.metadata or {}).get(b"pandas", b'{"columns": []}'))
        assert [(c["name"], c["numpy_type"]) for c in note["columns"]] == ([("id", told)] if told else [])


def test_faiss_takes_any_label_but_its_own_for_nothing(table: Tensor, tmp_path: Path) -> None:
    import faiss

    ids = [None, -2, -(2**63), 2**63 - 1, 2**53 + 1, *range(ROWS - 5)]
    export_tables(Computed(table), {"item": ids_of(tmp_path, ids)}, tmp_path, "faiss", "fp32", BLOCK)
    index = faiss.read_index(str(tmp_path / "item.faiss"))
    assert faiss.vector_to_array(index.id_map).tolist() == ids[1:]
    ids[77] = -1
    os.remove(tmp_path / "item.faiss")
    with pytest.raises(ValueError, match=r"table 'item', row 77: the id -1 is what a FAISS index answers .*; give"):
        export_tables(Computed(table), {"item": ids_of(tmp_path, ids)}, tmp_path, "faiss", "fp32", BLOCK)
    assert not (tmp_path / "item.faiss").exists()
    written = export_tables(Computed(table), {"item": ids_of(tmp_path, ids)}, tmp_path, "npy", "fp32", BLOCK)
    assert torch.equal(open_table(tmp_path, "item", written["item"]).lookup([-1]), table[[77]])


NAMES = ["age/range", "age.range", "age", "age%2Frange", "../up", "..", ".", "", "con", "type", "район", "a b", "a\nb"]


@pytest.mark.parametrize("format", ["parquet", "safetensors", "npy", "faiss"])
def test_a_table_of_any_name_has_files_of_its_own(format: str, table: Tensor, tmp_path: Path) -> None:
    """Tables of users' columns are named as those are."""
    ids, out = ids_of(tmp_path, TEXT), tmp_path / "out"
    out.mkdir()
    written = {}
    for number, name in enumerate(NAMES):
        written |= export_tables(Computed(table + number), {name: ids}, out, format)
    assert list(written) == NAMES and sorted(p.name for p in tmp_path.iterdir()) == ["ids.parquet", "out"]
    assert [unquote(t["file"]) for t in written.values()] == [f"{name}.{format}" for name in NAMES]
    for number, name in enumerate(NAMES):
        assert torch.equal(open_table(out, name, written[name]).lookup(TEXT), table + number)


def train_nothing(kind: str, path: str) -> dict[str, Tensor | None]:
    """Save a ranker's checkpoint by all ranks; rank 0 returns its whole tables."""
    features = Features(
        sequence=(Table("item", ROWS, DIM, ("item",)),),
        pooled=(Table("user", 57, DIM, ("user",)), Table("city", 13, DIM, ("item_city",))),
        dense=(),
    )
    with runtime(3) as rt:
        trainee = assemble(features, RankerConfig(mlp=[8]), ShardingConfig(default=kind), OptimizerConfig(), rt, 8, 2.0)
        dcp.save(trainee.state(), storage_writer=dcp.FileSystemWriter(path))
        whole: dict[str, Tensor | None] = {}
        for key, value in trainee.model.state_dict().items():
            if isinstance(value, ShardedTensor):
                out = torch.empty(value.size()) if rt.is_first else None
                value.gather(0, out)
                whole[key.split(".")[-2]] = out
        return whole


@pytest.mark.parametrize(
    ("kind", "world_size"), [("table_wise", 1), ("table_wise", 2), ("column_wise", 2), ("row_wise", 3)]
)
def test_shards_of_any_number_of_ranks(
    kind: str, world_size: int, ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    whole = ranks(world_size, train_nothing, kind, str(tmp_path))[0]
    tables = CheckpointTables(tmp_path)
    assert tables.names == sorted(whole) == ["city", "item", "user"]
    for name, want in whole.items():
        assert tables.shape(name) == tuple(want.shape)
        for block in (1, 10, 1000):
            assert torch.equal(torch.cat([b.clone() for b in tables.blocks(name, block)]), want)


def test_half_precision_and_columns_that_are_strided(tmp_path: Path) -> None:
    table = torch.randn(9, 4)
    tables = save(tmp_path / "c", {"half": table.half(), "brain": table.bfloat16(), "view": torch.randn(9, 8)[:, 2:6]})
    assert torch.equal(next(tables.blocks("half", 99)), table.half().float())
    assert torch.equal(next(tables.blocks("brain", 99)), table.bfloat16().float())
    assert next(tables.blocks("view", 99)).shape == (9, 4)
    with pytest.raises(ValueError, match=r"is stored as torch.float32 \(9, 4\) with strides \(1, 9\)"):
        save(tmp_path / "d", {"transposed": torch.randn(4, 9).T})


def test_errors_tell_what_to_do(table: Tensor, tmp_path: Path) -> None:
    tables, ids = save(tmp_path / "c", {"item": table, "user": table[:5]}), ids_of(tmp_path, NUMBERS)
    with pytest.raises(ValueError, match=r"there is no table 'shop' in .*; it has item, user"):
        export_tables(tables, {"shop": ids}, tmp_path)
    with pytest.raises(ValueError, match=r"table 'user' has 5 rows, .*ids.parquet 101 ids; use the data it was"):
        export_tables(tables, {"user": ids}, tmp_path)
    with pytest.raises(ValueError, match="format='csv': expected one of parquet, safetensors, npy, faiss"):
        export_tables(tables, {"item": ids}, tmp_path, "csv")
    with pytest.raises(ValueError, match="dtype='fp8': expected one of fp32, fp16, int8, int4"):
        export_tables(tables, {"item": ids}, tmp_path, "npy", "fp8")
    with pytest.raises(ValueError, match="dtype='int8': a FAISS index takes fp32 or fp16"):
        export_tables(tables, {"item": ids}, tmp_path, "faiss", "int8")
    with pytest.raises(ValueError, match="block_rows=0: expected at least 1"):
        export_tables(tables, {"item": ids}, tmp_path, block_rows=0)
    with pytest.raises(ValueError, match=r"ids.parquet has no column 'item_id'; it has value"):
        RawIds.read(tmp_path / "ids.parquet", "item_id")
    with pytest.raises(ValueError, match=r"can't be read as a checkpoint .*expected step-"):
        CheckpointTables(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"dtype=fp16: a value of magnitude 100000.0 can't be kept; export as fp32"):
        pack(torch.full((2, 4), 1e5), "fp16")
    with pytest.raises(ValueError, match="dtype=int8: a value of magnitude nan"):
        pack(torch.full((2, 4), torch.nan), "int8")


def test_reader_errors(table: Tensor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tables, ids = save(tmp_path / "c", {"item": table}), {"item": ids_of(tmp_path, NUMBERS)}
    with whole_folder(out) as folder:
        (folder / "tables").mkdir()
        written = export_tables(tables, ids, folder / "tables")
        write_manifest(folder, "export", {}, tables=written)
    read = load_table(out, "item")
    assert isinstance(read, EmbeddingTable) and len(read) == ROWS
    with pytest.raises(ValueError, match=r"has no table 'user'; it has item"):
        load_table(out, "user")
    with pytest.raises(IndexError, match="table 'item' has 101 rows, asked for rows 0 to 101"):
        read.vectors(torch.tensor([0, 101]))
    with pytest.raises(TypeError, match="table 'item' has ids of type int64"):
        read.lookup(["Bar Sport"])
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["tables"]["item"]["rows"] = 7
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"the manifest says float32 \(7, 8\); export again"):
        load_table(out, "item")


def test_truncated_checkpoint_is_told(table: Tensor, tmp_path: Path) -> None:
    tables = save(tmp_path / "c", {"item": table})
    (file,) = (tmp_path / "c").glob("*.distcp")
    os.truncate(file, 1200)
    with pytest.raises(ValueError, match=r"ends before row \d+ of its table; the checkpoint is damaged"):
        list(tables.blocks("item", BLOCK))
    with pytest.raises(ValueError, match=r"can't be read \(.*; the checkpoint is damaged"):
        CheckpointTables(tmp_path / "c")


@pytest.mark.parametrize("format", ["parquet", "safetensors", "npy", "faiss"])
def test_full_disk_leaves_no_folder(format: str, tmp_path: Path) -> None:
    tables = save(tmp_path / "c", {"item": torch.randn(4000, 64)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # the system then refuses to let a file grow further
    try:
        with pytest.raises((OSError, RuntimeError)) as error, whole_folder(tmp_path / "out") as folder:
            export_tables(tables, {"item": RawIds(4000)}, folder, format, "fp32", 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert getattr(error.value, "errno", None) == errno.EFBIG or "write" in str(error.value).lower()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
