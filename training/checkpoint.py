"""Checkpoints: written while training goes on, whole or not at all, loadable at any number of ranks.

A checkpoint is a folder ``step-00000123`` in the format of torch.distributed.checkpoint plus a ``manifest.json`` of
ours: the trainer's state, and the SHA-256 of every file. It is written as ``.step-00000123.partial`` and renamed by
the coordinator once all ranks have written and synced theirs, so a folder that has its name is complete.
"""

import copy
import json
import logging
import os
import re
import shutil
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from ..data.manifest import MANIFEST, environment, sha256_file, write_json

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps of all whole checkpoints, oldest first."""
    names = [_NAME.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(m[1]) for m in names if m)


class _WholeFolderWriter(FileSystemWriter):
    """Adds hashes, the trainer's state, and the rename that makes a checkpoint exist."""

    def __init__(self, final: Path, trainer: dict[str, Any]) -> None:
        self.final = final
        self.partial = final.with_name(f".{final.name}.partial")
        self.trainer = trainer
        super().__init__(self.partial)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        written = super().write_data(plan, planner)
        names = {r.storage_data.relative_path for r in written.wait()}
        hashes = {n: _describe(self.partial / n) for n in names}
        write_json(self.partial / f"hashes-{dist.get_rank():05d}.json", hashes)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        files = {".metadata": _describe(self.partial / ".metadata")}
        for part in sorted(self.partial.glob("hashes-*.json")):
            files |= json.loads(part.read_text())
            part.unlink()
        content = {"kind": "checkpoint", **self.trainer, "environment": environment(), "files": files}
        write_json(self.partial / MANIFEST, content)
        os.rename(self.partial, self.final)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


class _Snapshot:
    """Copies the state to host memory, so that training can go on while it is written.

    PyTorch's own stager can't copy a ShardedTensor (it asks it for a data pointer).
    """

    should_synchronize_after_execute = _synchronize_after_execute = False

    def stage(self, state_dict: Any, **_: Any) -> Any:
        def copied(x: Any) -> Any:
            if isinstance(x, ShardedTensor):
                shards = [Shard(s.tensor.detach().to("cpu", copy=True), s.metadata) for s in x.local_shards()]
                return ShardedTensor._init_from_local_shards_and_global_metadata(
                    shards, x.metadata(), process_group=x._process_group
                )
            if isinstance(x, Tensor):
                return x.detach().to("cpu", copy=True)
            if isinstance(x, dict):
                return {k: copied(v) for k, v in x.items()}
            return copy.deepcopy(x)

        return copied(state_dict)

    def synchronize_staging(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Pending:
    step: int
    future: Future[Any]


class Checkpointer:
    """Saves and prunes the checkpoints of one run.

    Args:
        folder: holds all checkpoints; on a file system that all ranks share.
        keep: how many of the newest are kept; a step in ``protected`` stays besides.
        group: a gloo group that nobody else uses: saving goes on while training communicates.
    """

    def __init__(self, folder: Path, keep: int, group: dist.ProcessGroup) -> None:
        self.folder = folder
        self.keep = keep
        self.group = group
        self.protected: set[int] = set()
        self._pending: _Pending | None = None

    def save(self, step: int, state: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Start to save; all ranks call it at the same step. Waits for the save before, and raises its error.

        Args:
            step: names the checkpoint.
            state: tensors and ShardedTensors in nested dicts; copied before this returns.
            trainer: JSON-ready state, stored readable in the manifest.
        """
        self.wait()
        final = checkpoint_path(self.folder, step)
        if final.exists():
            return
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(final.with_name(f".{final.name}.partial"), ignore_errors=True)
        dist.barrier(group=self.group)
        future = dcp.async_save(
            state,
            storage_writer=_WholeFolderWriter(final, {"step": step, **trainer}),
            async_stager=_Snapshot(),
            process_group=self.group,
        )
        assert isinstance(future, Future)
        self._pending = _Pending(step, future)

    def wait(self) -> None:
        """Wait until what was started is on disk, then remove checkpoints that are no longer kept.

        Raises:
            OSError: it could not be written (a full disk, say); the partial one is removed, older ones are untouched.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        final = checkpoint_path(self.folder, pending.step)
        try:
            pending.future.result()
        except BaseException as error:
            if dist.get_rank() == 0:
                shutil.rmtree(final.with_name(f".{final.name}.partial"), ignore_errors=True)
            whole = saved_steps(self.folder)
            last = f"the newest whole checkpoint is step {whole[-1]}" if whole else "there is no whole checkpoint"
            raise OSError(
                f"checkpoint of step {pending.step} could not be written to {self.folder}: {_root_cause(error)}; "
                f"{last}. Free some space or check the disk, then go on with --resume"
            ) from error
        if dist.get_rank() == 0:
            for step in saved_steps(self.folder)[: -self.keep]:
                if step not in self.protected:
                    shutil.rmtree(checkpoint_path(self.folder, step))


def _root_cause(error: BaseException) -> str:
    """The innermost reason in one line: DCP wraps what each rank met."""
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        error = inner[0] if isinstance(inner, tuple) else inner
    while error.__cause__ is not None:
        error = error.__cause__
    return traceback.format_exception_only(error)[-1].strip()


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the size and hash that it was written with.

    Raises:
        ValueError: a file is missing or differs; names it.
    """
    manifest_path = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(manifest_path.read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{manifest_path} can't be read ({error})") from error
    for name, want in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file.stat().st_size != want["bytes"]:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, {want['bytes']} were written")
        if sha256_file(file) != want["sha256"]:
            raise ValueError(f"{file} differs from what was written (sha256)")
    return manifest


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its manifest; damaged newer ones are told and passed over.

    All ranks call it; the first one reads and hashes, and tells the others. None where there is no checkpoint.

    Raises:
        ValueError: there are checkpoints, and every one is damaged.
    """
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        damage = []
        for step in reversed(saved_steps(folder)):
            path = checkpoint_path(folder, step)
            try:
                found = [(path, verify(path)), None]
                break
            except ValueError as error:
                log.warning("checkpoint of step %d is damaged: %s; trying the one before", step, error)
                damage.append(str(error))
        else:
            if damage:
                found[1] = f"every checkpoint in {folder} is damaged: {'; '.join(damage)}; train again without --resume"
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise ValueError(found[1])
    return found[0]


def load(path: Path, state: dict[str, Any]) -> None:
    """Fill ``state`` in place from a checkpoint that any number of ranks wrote.

    Args:
        path: of the checkpoint.
        state: the same nested dict that was saved (or a part of it); tensors are overwritten.

    Row-wise Adagrad keeps one number a row and column shard. Where the checkpoint cut a table's columns into another
    number of pieces than ``state`` does, each piece gets the row's mean over the saved pieces, which is what an
    uncut table would have accumulated from the same gradients.

    Raises:
        ValueError: a tensor that ``state`` wants is not there, or has another shape: another config.
    """
    saved = FileSystemReader(path).read_metadata().state_dict_metadata
    recut: list[tuple[ShardedTensor, dict[str, Any], str, int]] = []

    def walk(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                out[key] = walk(value, f"{name}.")
                continue
            if name not in saved:
                raise ValueError(f"{path} has no {name!r}: it was saved with another config")
            meta = saved[name]
            size = getattr(meta, "size", None)
            if isinstance(value, Tensor | ShardedTensor) and size is not None and size != value.size():
                table = saved.get("model." + prefix.removeprefix("optimizer.state.").removesuffix("."))
                if isinstance(value, ShardedTensor) and isinstance(table, TensorStorageMetadata):
                    out[key] = torch.empty(size, dtype=value.dtype)
                    recut.append((value, out, key, table.size[0]))
                    continue
                raise ValueError(
                    f"{path}: {name!r} has shape {tuple(size)}, this config makes {tuple(value.size())}; "
                    "load it with the config it was saved with"
                )
            out[key] = value
        return out

    dcp.load(walk(state, ""), storage_reader=FileSystemReader(path))
    for target, node, key, rows in recut:
        _spread(node[key], rows, target)


def _spread(saved: Tensor, rows: int, target: ShardedTensor) -> None:
    """Write row states cut into some number of column pieces (laid end to end) into another number of pieces."""
    mean = saved.view(-1, rows).mean(dim=0)
    for shard in target.local_shards():
        start, length = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
        shard.tensor.copy_(mean[torch.arange(start, start + length) % rows].view_as(shard.tensor))
