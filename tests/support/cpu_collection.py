"""TorchRec's DMPCollection (2D parallelism) on the CPU, so that what needs no GPU of it can be run."""

import ast
import inspect
import textwrap
from typing import Any

from torchrec.distributed import model_parallel

from placerank.training import sharding


def allow_on_cpu() -> None:
    """Take out the two places where DMPCollection asks for CUDA, in this process, for good.

    It asserts the device's type, and names a rank's device by number when it gives shards to another group of ranks,
    which the CPU's has not. All else runs as it is.
    """
    made = ast.parse(textwrap.dedent(inspect.getsource(model_parallel.DMPCollection.__init__)))
    function = made.body[0]
    assert isinstance(function, ast.FunctionDef)
    asserts = [node for node in function.body if isinstance(node, ast.Assert)]
    assert len(asserts) == 1 and "CUDA" in ast.unparse(asserts[0])
    function.body.remove(asserts[0])
    source = ast.unparse(made).replace("super().__init__(", "super(DMPCollection, self).__init__(")
    names: dict[str, Any] = {}
    exec(source, vars(model_parallel), names)
    model_parallel.DMPCollection.__init__ = names["__init__"]
    named = model_parallel._remote_device
    model_parallel._remote_device = lambda name: named(name.rsplit(":", 1)[0] if "/cpu:" in name else name)
    sharding.COLLECTION_DEVICES = ("cuda", "cpu")
