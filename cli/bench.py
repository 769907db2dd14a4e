"""``placerank bench kernels``: microbenchmarks of the kernels on this machine."""

from ..benchmarks.kernels.run import BenchKernelsConfig, bench_kernels
from .settings import SettingsError
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the benchmarks with settings from defaults, file and flags; returns the exit code."""
    if argv in (["-h"], ["--help"]):
        argv = ["kernels", *argv]
    if argv[:1] != ["kernels"]:
        got = f"got {argv[0]!r}" if argv and not argv[0].startswith("-") else "nothing said"
        raise SettingsError(f"what to benchmark: {got}, expected: placerank bench kernels [options]")
    return run_step("bench kernels", BenchKernelsConfig, bench_kernels, argv[1:])
