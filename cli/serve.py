"""``placerank serve``."""

from ..serving.settings import ServeConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Serve with settings from defaults, file and flags, until ended; returns the exit code."""
    if argv and not argv[0].startswith("-"):
        argv = ["--export", *argv]
    return run_step("serve", ServeConfig, _serve, argv)


def _serve(config: ServeConfig) -> None:
    from ..serving.serve import serve

    serve(config)
