"""Settings of ``placerank serve``."""

from dataclasses import dataclass
from pathlib import Path

from ..data.plain import check_numbers, set_places


@dataclass(kw_only=True)
class ServeConfig:
    """Ranked lists over HTTP, from an export: POST /rank, POST /reload, GET /health, GET /metrics."""

    export: Path
    """What placerank export wrote; a new one in its place is served from then on. placerank serve
    EXPORT is short for it."""
    deltas: Path | None = None
    """Folder whose subfolders placerank export --since wrote: those that lead on from the export are applied."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    watch_s: float = 10.0
    """Seconds between looks for a new export or delta; 0: only when asked, by POST /reload."""
    waiting: int = 256
    """Requests that may wait for the ranker; more are answered 503."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"port": 0, "watch_s": 0, "waiting": 1}, port=65_535)
        set_places(self)
