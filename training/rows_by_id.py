"""Rows of a checkpoint for other vocabularies than its own: each goes where its raw id is now.

A vocabulary that ``prepare --after`` made begins with the ids of the day before, so hashes alone tell their rows. Other
vocabularies are compared id by id with those of the folder that the run was trained on. What is new starts at the mean
of the trained rows that it shares most with (``likeness``), places at the row of newcomers, with a fresh state of the
optimizer.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from ..data.arrays import one_array
from ..data.batches.semantic_features import SemanticFeatures
from ..data.urls import fetched
from ..embeddings.shards import CheckpointTables
from .checkpoint import load, local_pieces
from .identity import Identity, check_signature, hash_in_order, read_ids
from .inputs import Inputs
from .settings import NewRows

log = logging.getLogger(__name__)
Ints = NDArray[np.int64]
_BLOCK_ROWS = 1 << 16
_SEPARATOR = " > "  # of paths of categories and regions


@dataclass(frozen=True)
class Moves:
    """Where the rows of vocabularies come from.

    Attributes:
        origin: by vocabulary, the row that each id had in the checkpoint, -1 for new ones, [rows].
        gone: by vocabulary, ids of the checkpoint that are no more.
    """

    origin: dict[str, Ints]
    gone: dict[str, int]

    def lines(self) -> list[str]:
        """In words: of each vocabulary that changed what is new, and what is gone."""
        found = []
        for name, origin in self.origin.items():
            new, gone = int((origin < 0).sum()), self.gone[name]
            if new or gone:
                more = f", {gone:,} gone" if gone else ""
                found.append(f"{name}: {new:,} new beside {len(origin) - 1 - new:,} known{more}")
        return found


def find_moves(identity: Identity, saved: Mapping[str, Any], where: str, then: Callable[[], Path]) -> Moves:
    """Compare a checkpoint's vocabularies with those of a prepared folder.

    Args:
        identity: of the folder and the config now.
        saved: the checkpoint's manifest.
        where: names it in messages.
        then: finds the prepared folder that it was trained on; called where a vocabulary didn't just grow.

    Raises:
        ValueError: another ranker, other semantic IDs, ids of another type, no item in common; or ``then`` is needed
            and has other ids by now.
        FileNotFoundError: of ``then``.
    """
    check_signature(_without_rows(saved["signature"], saved), _without_rows(identity.signature, saved), where)
    identity.inputs.check_semantic_ids(saved, where)
    moves = Moves({}, {})
    for name, known in saved["vocabularies"].items():
        ids = read_ids(identity.inputs, name)
        rows = known["ids"] + 1
        if len(ids) >= rows and hash_in_order(ids.slice(0, rows)) == known["sha256"]:
            moves.origin[name] = np.where(np.arange(len(ids)) < rows, np.arange(len(ids)), -1)
            moves.gone[name] = 0
            continue
        moves.origin[name], moves.gone[name] = _by_id(ids, then(), name, known, where, identity.inputs)
    return moves


def _by_id(
    ids: pa.ChunkedArray, then: Path, name: str, known: Mapping[str, Any], where: str, inputs: Inputs
) -> tuple[Ints, int]:
    before = read_ids(inputs, name, then)
    if hash_in_order(before) != known["sha256"]:
        raise ValueError(
            f"{where}: {then}, which it was trained on, has other {name} ids by now, so its rows are nobody's; prepare "
            "that data again, or train anew"
        )
    if before.type != ids.type:
        raise ValueError(
            f"{where} was trained on {before.type} ids of {name}, {inputs.folder} has {ids.type}; expected the same"
        )
    origin = pc.index_in(ids, value_set=one_array(before)).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    shared = int((origin > 0).sum())
    if name == "item" and shared == 0:
        raise ValueError(
            f"{where} knows {len(before) - 1:,} items and {inputs.folder} has {len(ids) - 1:,}, and none is the same: "
            "it is of other data; train anew"
        )
    return origin, len(before) - 1 - shared


def _without_rows(signature: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A signature but for the sizes of tables that follow from a vocabulary."""
    tables = {
        name: {k: v for k, v in about.items() if k != "rows" or vocabulary_of(name) not in saved["vocabularies"]}
        for name, about in signature["tables"].items()
    }
    return {**signature, "tables": tables}


def vocabulary_of(table: str) -> str:
    """The vocabulary whose ids a table has rows for."""
    return "category" if table == "category_path" else table


def likeness(inputs: Inputs, name: str, origin: Ints) -> list[Ints]:
    """What new ids of a vocabulary share with known ones: groups from close to wide.

    Items and users start as everybody of whom nothing was known did, in row 0, if that was trained. Else items:
    prefixes of the semantic ID from the longest on, category with brand, category, all; users: all. Nodes of categories
    and regions: those below the same one, all. Others: all.

    Returns:
        The number of each row's group, -1 for none, int64 [rows] each.
    """
    every = np.zeros(len(origin), np.int64)
    every[0] = -1
    nobody = np.where(origin < 0, 0, -1)
    nobody[0] = 0
    if name == "user":
        return [nobody, every]
    if name != "item":
        text = pc.cast(read_ids(inputs, name), pa.string())
        above = pc.replace_substring_regex(text, r"( > )?[^>]*$", "")  # all but the last level
        return [_numbered(above), every]
    found: list[Ints] = []
    if inputs.tokens is not None:
        codes = SemanticFeatures.load(inputs.tokens, inputs.item_ids()).codes
        group = np.zeros(len(codes), np.int64)
        for level in codes.T:
            _, group = np.unique(group * (int(codes.max(initial=0)) + 2) + level + 1, return_inverse=True)
            found.insert(0, np.where(level < 0, -1, group))
    table = pq.read_table(fetched(inputs.folder / "catalog.parquet"), columns=["category_row", "brand_row"])
    category, brand = (table[c].to_numpy().astype(np.int64) for c in table.column_names)
    pair = np.where((category > 0) & (brand > 0), category * (brand.max(initial=0) + 1) + brand, -1)
    return [nobody, *found, pair, np.where(category > 0, category, -1), every]


def _numbered(texts: pa.ChunkedArray) -> Ints:
    indices = one_array(texts).dictionary_encode().indices
    found: Ints = indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def load_by_id(
    path: Path,
    inputs: Inputs,
    moves: Moves,
    state: Mapping[str, Any],
    new_rows: NewRows = "known",
) -> None:
    """Fill tables and dense part from a checkpoint that any number of ranks wrote; all ranks call it.

    Rows and their optimizer states go to where their ids are, wherever that lies. A rank reads the tables that it has
    pieces of block by block, and holds one number a row and column shard of all: their states.

    Args:
        path: of the checkpoint.
        inputs: what the ranker reads now.
        moves: of ``find_moves``.
        state: "model" and, where it goes on, "optimizer" of ``Trainee.state``; filled in place.
        new_rows: known: new rows start as ``likeness`` says, random: they stay as they are.

    Raises:
        ValueError: the checkpoint lacks something, or can't be read.
    """
    model, optimizer = state["model"], state.get("optimizer", {}).get("state", {})
    tables = {k: k.rsplit(".", 2)[1] for k in model if k.startswith("embeddings.")}
    moved = {k: table for k, table in tables.items() if vocabulary_of(table) in moves.origin}
    rest = {k: v for k, v in model.items() if k not in moved}
    if "optimizer" in state:
        load(path, {"model": rest, "optimizer": {"state": {k: v for k, v in optimizer.items() if k not in moved}}})
    else:
        load(path, {"model": rest})
    states = _row_states(path, moved)
    stored = CheckpointTables(path)
    like: dict[str, list[Ints]] = {}
    for key, table in moved.items():
        name = vocabulary_of(table)
        origin = moves.origin[name]
        has_new = new_rows == "known" and bool((origin < 0).any())
        if has_new and name not in like:
            like[name] = likeness(inputs, name, origin)
        trained = states[key].view(-1, stored.shape(table)[0]).sum(0).numpy() > 0
        starts = _Starts.of(origin, trained, like[name], stored.shape(table)[1]) if has_new else None
        _fill(stored, table, origin, model[key], starts)
        spare = model[key].size()[0] - len(origin)
        with_spare = np.pad(origin, (0, spare), constant_values=-1)
        for target in optimizer.get(key, {}).values():
            _fill_states(states[key], with_spare, target, stored.shape(table)[0])


def _row_states(path: Path, moved: Mapping[str, str]) -> dict[str, Tensor]:
    """Row-wise Adagrad's state of each table, one number a row and piece of its columns, whole."""
    known = FileSystemReader(path).read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {}
    for key, table in moved.items():
        about: Any = known.get(f"optimizer.state.{key}.{table}.momentum1")
        if about is None:
            raise ValueError(f"{path} has no state of table {table!r}: another version of placerank wrote it")
        wanted[key] = {f"{table}.momentum1": torch.zeros(about.size)}
    load(path, {"optimizer": {"state": wanted}})
    return {key: next(iter(node.values())) for key, node in wanted.items()}


@dataclass
class _Starts:
    """Means of the trained rows of groups, for the new rows of a table.

    Attributes:
        slot: of each row its group's, -1 for rows that are known, or like nothing that is, [N].
        levels: by level of likeness the rows' groups, those wanted, rising, and the slot of the first.
        now: of each row of the checkpoint where it is now, -1 for those that don't count, [M].
        sums, counts: over the rows seen, [S, D] and [S].
    """

    slot: Ints
    levels: list[tuple[Ints, Ints, int]]
    now: Ints
    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, origin: Ints, trained: NDArray[np.bool_], like: Sequence[Ints], dim: int) -> "_Starts":
        known = np.flatnonzero(origin >= 0)
        known = known[trained[origin[known]]]
        slot, levels, slots = np.full(len(origin), -1), [], 0
        for groups in like:
            left = np.flatnonzero((origin < 0) & (slot < 0) & (groups >= 0))
            there = left[np.isin(groups[left], groups[known])]
            wanted = np.unique(groups[there])
            slot[there] = slots + np.searchsorted(wanted, groups[there])
            levels.append((groups, wanted, slots))
            slots += len(wanted)
        now = np.full(len(trained), -1)
        now[origin[known]] = known
        return cls(slot, levels, now, torch.zeros(slots, dim, dtype=torch.float64), torch.zeros(slots))

    def see(self, start: int, block: Tensor) -> None:
        """Rows of the checkpoint's table, ``start`` on."""
        rows = self.now[start : start + len(block)]
        at = np.flatnonzero(rows >= 0)
        for groups, wanted, first in self.levels:
            if len(wanted) == 0:
                continue
            of = groups[rows[at]]
            where = np.minimum(np.searchsorted(wanted, of), len(wanted) - 1)
            mine = wanted[where] == of
            slots = torch.from_numpy(first + where[mine])
            self.sums.index_add_(0, slots, block[torch.from_numpy(at[mine])].double())
            self.counts.index_add_(0, slots, torch.ones(len(slots)))

    def means(self) -> Tensor:
        """[S, D]."""
        return (self.sums / self.counts[:, None]).float()


def _fill(stored: CheckpointTables, table: str, origin: Ints, weight: Any, starts: _Starts | None) -> None:
    """Write this rank's pieces of a table."""
    pieces = local_pieces(weight)
    if not pieces:
        return
    start = 0
    for block in stored.blocks(table, _BLOCK_ROWS):
        for (row, column), piece in pieces:
            from_ = origin[row : row + piece.shape[0]]
            here = np.flatnonzero((from_ >= start) & (from_ < start + len(block)))
            rows = block[torch.from_numpy(from_[here] - start)][:, column : column + piece.shape[1]]
            with torch.no_grad():
                piece[torch.from_numpy(here).to(piece.device)] = rows.to(piece)
        if starts is not None:
            starts.see(start, block)
        start += len(block)
    if starts is None:
        return
    means = starts.means()
    for (row, column), piece in pieces:
        slot = starts.slot[row : row + piece.shape[0]]
        here = np.flatnonzero(slot >= 0)
        rows = means[torch.from_numpy(slot[here])][:, column : column + piece.shape[1]]
        with torch.no_grad():
            piece[torch.from_numpy(here).to(piece.device)] = rows.to(piece)


def _fill_states(saved: Tensor, origin: Ints, target: Any, rows_then: int) -> None:
    """Write this rank's pieces of row states, laid end to end by pieces of the columns; those of new rows are 0."""
    by_piece, rows = saved.view(-1, rows_then), len(origin)
    count = target.size()[0] // rows
    if len(by_piece) != count:
        by_piece = by_piece.mean(dim=0, keepdim=True).expand(count, -1)
    for (start, *_), piece in local_pieces(target):
        at = np.arange(start, start + piece.shape[0])
        old = origin[at % rows]
        values = by_piece[torch.from_numpy(at // rows), torch.from_numpy(np.maximum(old, 0))]
        piece.copy_(torch.where(torch.from_numpy(old >= 0), values, 0.0).view_as(piece))
