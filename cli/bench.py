"""``placerank bench kernels``: microbenchmarks on this machine; ``placerank bench gpu``: all that wants a GPU."""

from pathlib import Path

from ..benchmarks.kernels.settings import BenchKernelsConfig
from .settings import SettingsError
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the benchmarks with settings from defaults, file and flags; returns the exit code.

    The GPU's check has flags alone: it also runs where what reads files of settings is not installed.
    """
    if argv[:1] == ["gpu"]:
        from ..benchmarks.gpu.check import main as gpu

        return gpu(argv[1:])
    if argv in (["-h"], ["--help"]):
        argv = ["kernels", *argv]
    if argv[:1] != ["kernels"]:
        got = f"got {argv[0]!r}" if argv and not argv[0].startswith("-") else "nothing said"
        raise SettingsError(f"what to benchmark: {got}, expected: placerank bench kernels or gpu [options]")
    return run_step("bench kernels", BenchKernelsConfig, _kernels, argv[1:])


def _kernels(config: BenchKernelsConfig) -> Path | None:
    from ..benchmarks.kernels.run import bench_kernels

    return bench_kernels(config)
