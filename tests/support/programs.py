"""Exports' programs take seconds to trace and to read: each kind is traced once a worker, each file read once."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.export import ExportedProgram

from placerank.data.batches.features import Features
from placerank.data.manifest import sha256_file
from placerank.rankers.dense import Scorer
from placerank.rankers.exported import trace_scorer
from placerank.training import export as export_module

_traced: dict[str, ExportedProgram] = {}
_written: dict[str, bytes] = {}
_read: dict[str, ExportedProgram] = {}
_really_load = torch.export.load


def _make(scorer: Scorer, features: Features) -> str:
    """All that is traced: modules with what they keep besides weights, and buffers that no state has."""

    def kept(module: torch.nn.Module) -> dict[str, Any]:
        return {name: x for name, x in vars(module).items() if not name.startswith("_")}

    modules = [(name, type(m), kept(m)) for name, m in scorer.named_modules()]
    state = scorer.state_dict()
    buffers = [(name, x.tolist()) for name, x in scorer.named_buffers() if name not in state]
    return repr((scorer, modules, buffers, {name: x.shape for name, x in state.items()}, features))


def _export_scorer(scorer: Scorer, features: Features, file: Path) -> None:
    make, state = _make(scorer.eval(), features), scorer.state_dict(keep_vars=True)
    weights = hashlib.sha256(make.encode())
    for name, x in state.items():
        weights.update(name.encode() + x.detach().contiguous().numpy().tobytes())
    if (whole := weights.hexdigest()) not in _written:
        if make not in _traced:
            _traced[make] = trace_scorer(scorer, features)
        program = _traced[make]
        assert program.state_dict.keys() <= state.keys()
        program.state_dict.update({name: state[name] for name in program.state_dict})
        torch.export.save(program, file)
        _written[whole] = file.read_bytes()
    file.write_bytes(_written[whole])


def _load(file: Path) -> ExportedProgram:
    content = sha256_file(Path(file))
    if content not in _read:
        _read[content] = _really_load(file)
    return _read[content]


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """A program that is there is written with the scorer's weights in place of those it was traced with."""
    with mock.patch.object(export_module, "export_scorer", _export_scorer), mock.patch("torch.export.load", _load):
        yield
