"""What ranks would import late, each for itself, in seconds; the server that they are forked from does so once."""

import compiled_once  # noqa: F401
import peft  # noqa: F401
import sklearn.cluster  # noqa: F401
import torch.distributed.optim  # noqa: F401
import transformers.models.auto  # noqa: F401
from numba.core.registry import cpu_target

import placerank.evaluation.evaluate  # noqa: F401

# What numba imports when it loads or compiles the first loop.
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
