"""A trained ranker from its run folder, ready to score."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.batches.catalog import Catalog
from ..data.plain import from_plain
from ..data.urls import Url, fetched
from .checkpoint import checkpoint_path, load
from .identity import Identity
from .inputs import Inputs, read_inputs
from .model import assemble
from .predictions import Score
from .rows_by_id import find_moves, load_by_id
from .run_files import CHECKPOINTS, CONFIG, found_folder, holds_run, read_object, trained_on, whole_checkpoint
from .runtime import Runtime, on_first_rank
from .settings import ShardingConfig, TrainConfig
from .tasks import candidate_scorer, visit_scorer

log = logging.getLogger(__name__)


def read_config(
    run: Path, data: Path | None = None, semantic_ids: Path | None = None, user_semantic_ids: Path | None = None
) -> TrainConfig:
    """The config that a run was trained with, its folders where they are now.

    Args:
        run: the run folder.
        data: the prepared folder; default: the one that it was trained on, where it was, or where it would be if it
            had moved together with the run.
        semantic_ids: the folder of tokens, if it was trained with any; default: in the same way.
        user_semantic_ids: the same of users.

    Raises:
        FileNotFoundError: not a run folder, or the folders that it was trained on are gone; says with which flag to
            name them.
        ValueError: the config is damaged, or that of another step.
    """
    file = run / CONFIG
    content = read_object(file, "mend it or train again")
    if content is None:
        raise FileNotFoundError(f"{file} not found: expected a folder that `placerank train` made")
    if holds_run(run, "student"):
        raise ValueError(f"{run} has a run of `placerank adapt`, expected one of `placerank train`; ask it by advise")
    config = from_plain(TrainConfig, content, str(file))
    tokens, of_users = semantic_ids, user_semantic_ids
    if tokens is None and config.features.semantic_ids is not None:
        tokens = found_folder(config.features.semantic_ids, run, config.run, "--semantic-ids")
    if of_users is None and config.features.user_semantic_ids is not None:
        of_users = found_folder(config.features.user_semantic_ids, run, config.run, "--user-semantic-ids")
    data = data or found_folder(config.data, run, config.run, "--data")
    return replace(config, data=data, run=run, features=config.features.moved(tokens, of_users))


def open_checkpoint(run: Path, which: str, identity: Identity) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a run that is whole and fits: what all who use one but don't go on with it begin with.

    Args:
        run: the run folder.
        which: see ``find_checkpoint``.
        identity: of the data and the config that it is to be used with.

    Returns:
        Its folder on this disk, and its manifest.

    Raises:
        FileNotFoundError: there is none such.
        ValueError: it is damaged, or its rows or its ranker are others.
    """
    path, saved = whole_checkpoint(run, which)
    identity.check(saved, f"checkpoint {path}")
    return path, saved


@dataclass(frozen=True)
class Loaded:
    """A trained ranker on this run's ranks.

    Attributes:
        model: sharded, in evaluation.
        catalog: of the items.
        inputs: what it was built from.
        saved: the checkpoint's manifest.
    """

    model: Any
    catalog: Catalog
    inputs: Inputs
    saved: dict[str, Any]

    def score(self) -> Score:
        """Samples to logits [B]; a generative ranker's are the log-odds of the item among all places."""
        if self.inputs.ranker.generates:
            return visit_scorer(self.model, self.catalog)
        return candidate_scorer(self.model, self.catalog)


def load_ranker(
    run: Path,
    rt: Runtime,
    data: Path | None = None,
    checkpoint: str = "best",
    batch_size: int | None = None,
    semantic_ids: Path | None = None,
    user_semantic_ids: Path | None = None,
) -> Loaded:
    """Build a run's ranker on this run's ranks, whatever number it was trained on, and load a checkpoint.

    Rows are those of the data's ids, as training with ``warm_start`` would begin: new ones start from what is known.

    Args:
        run: the run folder.
        rt: ranks and device of this process.
        data: prepared folder; default: the one it was trained on.
        checkpoint: "best", "latest" or a step number.
        batch_size: samples a batch, for the planner; default: the training config's.
        semantic_ids: the folder of tokens; default: the one that it was trained with.
        user_semantic_ids: the same of users.

    Raises:
        FileNotFoundError: no such run, checkpoint or data.
        ValueError: the checkpoint is damaged, or belongs to another ranker than the data makes, or to other data.
    """
    config = on_first_rank(lambda: read_config(run, data, semantic_ids, user_semantic_ids))
    inputs = read_inputs(config.data, config.features, config.ranker)
    identity = Identity.of(inputs, config.ranker)
    path, saved = on_first_rank(lambda: whole_checkpoint(run, checkpoint))
    moves = None
    if identity.same_rows(saved):
        identity.check(saved, f"checkpoint {path}")
    else:
        moves = on_first_rank(lambda: find_moves(identity, saved, f"checkpoint {path}", lambda: trained_on(run)))
        if rt.is_first:
            log.info("%s was trained on other ids: %s", run, "; ".join(moves.lines()))
    if isinstance(run, Url):  # on this machine, too
        path = fetched(checkpoint_path(run / CHECKPOINTS, saved["step"]))
    catalog = inputs.catalog(rt.device, cut=config.sharding.catalog == "sharded")
    trainee = assemble(
        inputs.features,
        config.ranker,
        ShardingConfig(),  # the training's may need its devices and its number of ranks; rows alone go anywhere
        config.optimizer,
        rt,
        batch_size or config.batch_size,
        inputs.manifest["history_length"],
        catalog.device_bytes,
        inputs.make_ranker(),
    )
    state = trainee.model.state_dict()
    if moves is None:
        load(path, {"model": state})
    else:
        load_by_id(path, inputs, moves, {"model": state}, config.new_rows)
    trainee.model.load_state_dict(state)
    trainee.model.eval()
    return Loaded(trainee.model, catalog, inputs, saved)


def load_scorer(run: Path, rt: Runtime, *args: Any, **more: Any) -> tuple[Score, Catalog, dict[str, Any]]:
    """``load_ranker`` as a function from SampleBatch to logits [B], the catalog, and the checkpoint's manifest."""
    loaded = load_ranker(run, rt, *args, **more)
    return loaded.score(), loaded.catalog, loaded.saved
