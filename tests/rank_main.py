"""What each rank of a distributed test runs; ``JOB`` is put into its globals by the ``ranks`` fixture."""

import importlib.util
import os

import torch

file, name, args, rank, world_size, port, out, environment = JOB  # type: ignore[name-defined]  # noqa: F821
os.environ |= environment | {
    "RANK": str(rank),
    "LOCAL_RANK": str(rank),
    "WORLD_SIZE": str(world_size),
    "LOCAL_WORLD_SIZE": str(world_size),
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": str(port),
}
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("job", file)
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
result = getattr(module, name)(*args)
torch.save(result, f"{out}/{rank}.pt")
