"""A trained ranker from its run folder, ready to score."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..data.batches.catalog import Catalog
from ..data.manifest import MANIFEST
from .checkpoint import checkpoint_path, load, saved_steps
from .inputs import read_inputs
from .model import assemble, check_signature, signature
from .predictions import Score
from .runtime import Runtime
from .train import TrainConfig, scorer


def read_config(run: Path) -> TrainConfig:
    """The resolved config that a run was trained with.

    Raises:
        FileNotFoundError: not a run folder.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected a folder that `placerank train` made")
    return _from_plain(TrainConfig, json.loads(path.read_text()))


def _from_plain(cls: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    made = {}
    for f in fields(cls):
        value, hint = values[f.name], hints[f.name]
        if is_dataclass(hint):
            value = _from_plain(hint, value)
        elif value is not None and Path in (hint, *get_args(hint)):
            value = Path(value)
        made[f.name] = value
    return cls(**made)


def find_checkpoint(run: Path, which: str) -> Path:
    """The folder of a run's checkpoint: "best" (by validation AUC), "latest", or a step number.

    Raises:
        FileNotFoundError: there is none such; lists the steps that there are.
    """
    folder = run / "checkpoints"
    steps = saved_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder} holds no whole checkpoint; train first")
    if which == "best" and (run / "best.json").is_file():
        step = json.loads((run / "best.json").read_text())["step"]
    elif which in ("best", "latest"):
        step = steps[-1]
    elif which.isdecimal():
        step = int(which)
    else:
        raise ValueError(f"checkpoint={which!r}: expected best, latest or a step number")
    if step not in steps:
        raise FileNotFoundError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return checkpoint_path(folder, step)


def load_scorer(
    run: Path,
    rt: Runtime,
    data: Path | None = None,
    checkpoint: str = "best",
    batch_size: int | None = None,
    semantic_ids: Path | None = None,
) -> tuple[Score, Catalog, dict[str, Any]]:
    """Build a run's ranker on this run's ranks, whatever number it was trained on, and load a checkpoint.

    Args:
        run: the run folder.
        rt: ranks and device of this process.
        data: prepared folder; default: the one it was trained on.
        checkpoint: "best", "latest" or a step number.
        batch_size: samples a batch, for the planner; default: the training config's.
        semantic_ids: the folder of tokens; default: the one that it was trained with.

    Returns:
        A function from SampleBatch to logits [B], the catalog, and the checkpoint's manifest.

    Raises:
        ValueError: the data makes another ranker than the checkpoint holds.
    """
    config = read_config(run)
    data = data or config.data
    inputs = read_inputs(data, config.features.moved(semantic_ids), config.ranker)
    features, manifest = inputs.features, inputs.manifest
    path = find_checkpoint(run, checkpoint)
    saved = json.loads((path / MANIFEST).read_text())
    check_signature(saved["signature"], signature(features, config.ranker), f"checkpoint {path}")
    inputs.check_semantic_ids(saved["semantic_ids"], f"checkpoint {path}")
    trainee = assemble(
        features,
        config.ranker,
        config.sharding,
        config.optimizer,
        rt,
        batch_size or config.batch_size,
        manifest["history_length"],
    )
    state = trainee.model.state_dict()
    load(path, {"model": state})
    trainee.model.load_state_dict(state)
    trainee.model.eval()
    catalog = inputs.catalog(rt.device)
    return scorer(trainee.model, catalog), catalog, saved
