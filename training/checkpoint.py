"""Checkpoints: written while training goes on, whole or not at all, loadable at any number of ranks.

A checkpoint is a folder ``step-00000123`` in the format of torch.distributed.checkpoint plus a ``manifest.json`` of
ours: the trainer's state, and the SHA-256 of every file and of itself. It is written as ``.step-00000123.partial`` and
renamed by the coordinator once all ranks have written and synced theirs, so a folder that has its name is complete.
What a killed run leaves under the other name the next one removes.
"""

import copy
import hashlib
import heapq
import json
import logging
import os
import re
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor

from ..data.manifest import MANIFEST, describe_file, environment, write_json
from ..data.urls import Url, listed
from .runtime import on_first_rank

log = logging.getLogger(__name__)

FORMAT = 2
"""Of the manifest: a checkpoint with another number, or none, was written by another version and is refused."""
_NAME = re.compile(r"step-(\d{8})")
_SEAL = "manifest_sha256"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _partial_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def remove_partial(folder: Path) -> None:
    """Remove what runs that were killed left: checkpoints half written or half removed."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def saved_steps(folder: Path) -> list[int]:
    """Steps of all whole checkpoints, oldest first. Behind a URL those are the ones with a manifest."""
    if isinstance(folder, Url):
        found = [name.split("/")[0] for name in listed(folder) if name.endswith(f"/{MANIFEST}")]
    else:
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, found) if m)


class _GivenUp(RuntimeError):
    """A rank is to end and its checkpoint with it."""


class _WholeFolderWriter(FileSystemWriter):
    """Adds hashes, the trainer's state, and the rename that makes a checkpoint exist.

    Attributes:
        given_up: set while it writes, in another thread: what is written is not to become a checkpoint.
    """

    def __init__(self, final: Path, trainer: dict[str, Any]) -> None:
        self.final = final
        self.partial = _partial_path(final)
        self.trainer = trainer
        self.given_up = False
        super().__init__(self.partial)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        self._go_on()
        written = super().write_data(plan, planner)
        self._go_on()
        names = {r.storage_data.relative_path for r in written.wait()}
        hashes = {n: describe_file(self.partial / n) for n in names}
        write_json(self.partial / f"hashes-{dist.get_rank():05d}.json", hashes)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._go_on()
        super().finish(metadata, results)
        files = {".metadata": describe_file(self.partial / ".metadata")}
        for part in sorted(self.partial.glob("hashes-*.json")):
            files |= json.loads(part.read_text())
            part.unlink()
        about = {"kind": "checkpoint", "format": FORMAT, **self.trainer, "environment": environment(), "files": files}
        content = json.loads(json.dumps(about))  # as it will be read
        write_json(self.partial / MANIFEST, {**content, _SEAL: _seal(content)})
        self._go_on()
        os.rename(self.partial, self.final)

    def _go_on(self) -> None:
        if self.given_up:
            raise _GivenUp("the run was interrupted")


def _seal(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's content, however its JSON is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _on_host(metadata: ShardMetadata) -> ShardMetadata:
    """The same shard in its rank's memory: PyTorch holds a tensor to where its metadata says that it lies."""
    assert metadata.placement is not None
    return replace(metadata, placement=_remote_device(f"rank:{metadata.placement.rank()}/cpu"))


class _Snapshot:
    """Copies the state to host memory, so that training can go on while it is written.

    PyTorch's own stager can't copy a ShardedTensor (it asks it for a data pointer).
    """

    should_synchronize_after_execute = _synchronize_after_execute = False

    def stage(self, state_dict: Any, **_: Any) -> Any:
        def copied(x: Any) -> Any:
            if isinstance(x, ShardedTensor):
                about = copy.deepcopy(x.metadata())
                about.shards_metadata = [_on_host(m) for m in about.shards_metadata]
                shards = [
                    Shard(shard.tensor.detach().to("cpu", copy=True), _on_host(shard.metadata))
                    for shard in x.local_shards()
                ]
                return ShardedTensor._init_from_local_shards_and_global_metadata(
                    shards, about, process_group=x._process_group
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
    writer: _WholeFolderWriter
    future: Future[Any] | None = None


class Checkpointer:
    """Saves and prunes the checkpoints of one run.

    As a context it ends what is being written when the block ends: without an error it waits; after one too, for what
    is whole is worth having; where the process is to end (Ctrl-C, SIGTERM) it gives up and removes the partial one.

    Args:
        folder: holds all checkpoints; on a file system that all ranks share.
        keep: how many of the newest are kept; a step in ``protected`` stays besides.
        group: a gloo group that nobody else uses: saving goes on while training communicates.
        before_prune, after_prune: called on the first rank before checkpoints that are no longer kept are removed, and
            when what was started is whole and they are.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        group: dist.ProcessGroup,
        before_prune: Callable[[], None] = lambda: None,
        after_prune: Callable[[], None] = lambda: None,
    ) -> None:
        self.before_prune, self.after_prune = before_prune, after_prune
        self.folder = folder
        self.keep = keep
        self.group = group
        self.protected: set[int] = set()
        self._pending: _Pending | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, Exception):
            try:
                self.wait()
            except OSError as second:
                log.warning("%s", second)
        else:
            self._give_up()

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
            shutil.rmtree(_partial_path(final), ignore_errors=True)
        dist.barrier(group=self.group)
        writer = _WholeFolderWriter(final, {"step": step, **trainer})
        self._pending = _Pending(step, writer)
        future = dcp.async_save(state, storage_writer=writer, async_stager=_Snapshot(), process_group=self.group)
        assert isinstance(future, Future)
        self._pending.future = future

    def wait(self) -> None:
        """Wait until what was started is on disk, then remove checkpoints that are no longer kept.

        Raises:
            OSError: it could not be written (a full disk, say); the partial one is removed, older ones are untouched.
        """
        pending = self._pending
        if pending is None or pending.future is None:
            return
        try:
            pending.future.result()
        except (Exception, CheckpointException) as error:  # CheckpointException is none
            self._pending = None
            self._remove_partial(pending)
            cause = _root_cause(error)
            whole = saved_steps(self.folder)
            last = f"the newest whole checkpoint is step {whole[-1]}" if whole else "there is no whole checkpoint"
            if isinstance(cause, _GivenUp):
                raise OSError(f"checkpoint of step {pending.step} was given up: {cause} on another rank") from error
            raise OSError(
                f"checkpoint of step {pending.step} could not be written to {self.folder}: "
                f"{traceback.format_exception_only(cause)[-1].strip()}; {last}. Free some space or check the disk, "
                "then go on with --resume"
            ) from error
        self._pending = None
        if dist.get_rank() == 0:
            self.before_prune()
            for step in saved_steps(self.folder)[: -self.keep]:
                if step not in self.protected:
                    path = checkpoint_path(self.folder, step)
                    os.rename(path, _partial_path(path))  # at once: half of one must not bear the name of a whole
                    shutil.rmtree(_partial_path(path))
            self.after_prune()

    def _give_up(self) -> None:
        """Let what is being written not become a checkpoint, and remove it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.writer.given_up = True
        if pending.future is not None:
            pending.future.exception()  # the thread ends at the next file
        self._remove_partial(pending)

    def _remove_partial(self, pending: _Pending) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(pending.writer.partial, ignore_errors=True)


def _root_cause(error: BaseException) -> BaseException:
    """The innermost reason: DCP wraps what each rank met."""
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        error = inner[0] if isinstance(inner, tuple) else inner
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint: it and every file are as they were written.

    Reads the checkpoint once, eight files at a time; a core hashes about 1.4 GB a second. ``newest_whole`` has all
    ranks do it together.

    Raises:
        ValueError: a file is missing or differs, or another version wrote the checkpoint; says which.
    """
    manifest = _read_manifest(path)
    problem = _damage(path, manifest["files"])
    if problem is not None:
        raise ValueError(problem)
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, as it was written; files are not looked at. Raises ValueError as ``verify``."""
    manifest_path = path / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{manifest_path} can't be read ({error})") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{manifest_path} holds no manifest")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{manifest_path} has format {manifest.get('format')}, this version of placerank reads {FORMAT}: use the "
            "version that wrote it, or train again"
        )
    if manifest.pop(_SEAL, None) != _seal(manifest):
        raise ValueError(f"{manifest_path} differs from what was written (sha256)")
    return manifest


def _damage(path: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with the first of these files (of the manifest, by name) that isn't as it was written, if any."""

    def look(name: str) -> str | None:
        file, want = path / name, files[name]
        try:
            got = describe_file(file)
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} can't be read ({error})"
        if got["bytes"] != want["bytes"]:
            return f"{file} has {got['bytes']} bytes, {want['bytes']} were written"
        return None if got == want else f"{file} differs from what was written (sha256)"

    with ThreadPoolExecutor(8) as pool:
        return next((problem for problem in pool.map(look, files) if problem is not None), None)


def _share(files: dict[str, dict[str, Any]], rank: int, ranks: int) -> dict[str, dict[str, Any]]:
    """The files that one of several ranks hashes: the largest first, each to who has the fewest bytes so far."""
    load = [(0, r) for r in range(ranks)]
    mine = {}
    for name in sorted(files, key=lambda n: (-files[n]["bytes"], n)):
        size, least = heapq.heappop(load)
        heapq.heappush(load, (size + files[name]["bytes"], least))
        if least == rank:
            mine[name] = files[name]
    return mine


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its manifest; damaged newer ones are told and passed over.

    All ranks call it. The first one reads manifests, each hashes its share of the files, and all learn the same. None
    where there is no checkpoint.

    Raises:
        ValueError: there are checkpoints, and none can be used; on all ranks.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    problems = []
    for step in reversed(on_first_rank(lambda: saved_steps(folder))):
        path = checkpoint_path(folder, step)
        manifest: dict[str, Any] = {}
        try:
            manifest = on_first_rank(partial(_read_manifest, path))
            found: list[str | None] = [None] * ranks
            dist.all_gather_object(found, _damage(path, _share(manifest["files"], rank, ranks)))
            problem = next((p for p in found if p is not None), None)
        except ValueError as error:
            problem = str(error)
        if problem is None:
            return path, manifest
        if rank == 0:
            log.warning("checkpoint of step %d can't be used: %s; trying the one before", step, problem)
        problems.append(problem)
    if problems:
        raise ValueError(f"no checkpoint in {folder} can be used: {'; '.join(problems)}; train again with --overwrite")
    return None


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
    recut: list[tuple[Tensor | ShardedTensor, dict[str, Any], str, int]] = []

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
                if key.endswith("momentum1") and isinstance(table, TensorStorageMetadata):
                    out[key] = torch.empty(size, dtype=value.dtype)
                    recut.append((value, out, key, table.size[0]))
                    continue
                raise ValueError(
                    f"{path}: {name!r} has shape {tuple(size)}, this config makes {tuple(value.size())}; "
                    "load it with the config it was saved with"
                )
            out[key] = value
        return out

    try:
        dcp.load(walk(state, ""), storage_reader=FileSystemReader(path))
    except CheckpointException as error:
        cause = traceback.format_exception_only(_root_cause(error))[-1].strip()
        raise ValueError(f"{path} can't be read: {cause}") from error
    for target, node, key, rows in recut:
        _spread(node[key], rows, target)


def local_pieces(x: Tensor | ShardedTensor) -> list[tuple[tuple[int, ...], Tensor]]:
    """What this rank has of a table or of a state of its rows: where each piece begins, and its numbers, to write into.

    Args:
        x: sharded over all ranks, over those of one of several groups (a DTensor), or whole on every rank.
    """
    if isinstance(x, ShardedTensor):
        return [(tuple(s.metadata.shard_offsets), s.tensor) for s in x.local_shards()]
    if isinstance(x, DTensor):
        local: Any = x.to_local()  # TorchRec's wrapper of shards; a rank without any has an offset all the same
        return [(tuple(at), shard) for at, shard in zip(local.local_offsets(), local.local_shards(), strict=False)]
    return [((0,) * x.dim(), x)]


def _spread(saved: Tensor, rows: int, target: Tensor | ShardedTensor) -> None:
    """Write row states cut into some number of column pieces (laid end to end) into another number of pieces."""
    mean = saved.view(-1, rows).mean(dim=0)
    for (start, *_), piece in local_pieces(target):
        piece.copy_(mean[torch.arange(start, start + piece.shape[0]) % rows].view_as(piece))
