"""Steps of training: one after the other, or through TorchRec's pipeline.

The pipeline traces the ranker for where tables are looked up (two calls, see ``rankers/ranker.py``) and works on three
batches at once: it computes one while the ids of the next travel between ranks and the one after is copied up. It
changes when things happen, not what is computed: losses are those of plain steps.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any

from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward

from .model import Trainee

Logged = dict[str, Tensor]
Steps = Generator[Logged, None, None]
Forward = Callable[[Any], tuple[Tensor, Logged]]
"""A batch to the loss to descend, a scalar, and what to log of it."""


def plain_steps(trainee: Trainee, forward: Forward, batches: Iterator[Any]) -> Steps:
    """A step on each batch; yields what there is to log of it when it is done."""
    for batch in batches:
        trainee.optimizer.zero_grad()
        loss, logged = forward(batch)
        loss.backward()
        trainee.optimizer.step()
        yield logged


class _ForwardOnHost(PipelinedForward):
    _use_main_stream_for_dist_init = True  # there is no other


class _PipelineOnHost(TrainPipelineSparseDist):
    _pipelined_forward_type = _ForwardOnHost


def pipelined_steps(trainee: Trainee, forward: Forward, batches: Iterator[Any]) -> Steps:
    """As ``plain_steps``; up to three batches are taken before the first one's step is done.

    When the batches end or the generator is closed, the model is again one to call. So batches should end where it is
    to be called otherwise, at a validation: what the pipeline still held would be lost.
    """
    device = next(trainee.model.parameters()).device
    make = TrainPipelineSparseDist if device.type == "cuda" else _PipelineOnHost
    # groups of ranks that average their tables (2D) do so in the optimizer's step, as in plain steps
    meets = {"dmp_collection_sync_interval_batches": None}
    pipeline = make(trainee.model, trainee.optimizer, device, custom_model_fwd=forward, **meets)
    try:
        while True:
            try:
                logged: Logged = pipeline.progress(batches)
            except StopIteration:
                return
            yield logged
    finally:
        pipeline.detach()
