"""``placerank serve``."""

from ..serving.settings import ServeConfig
from .step import run_step, with_first_as


def main(argv: list[str]) -> int:
    """Serve with settings from defaults, file and flags, until ended; returns the exit code."""
    return run_step("serve", ServeConfig, _serve, with_first_as("--export", argv))


def _serve(config: ServeConfig) -> None:
    from ..serving.serve import serve

    serve(config)
