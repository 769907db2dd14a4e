"""From an export folder to ranked lists by raw ids: ``placerank.load``."""

from pathlib import Path

from ..data.urls import fetched, place
from .exported import SCORER
from .exported_generator import SETTINGS
from .rank_base import Ranker
from .rank_towers import TowerRanker
from .rank_visits import VisitRanker


def load(export: Path | str, verify: bool = True) -> Ranker:
    """A trained ranker, to ask for lists of places by raw ids.

    Args:
        export: folder that ``placerank export`` wrote, of a ranker of any kind; one behind a URL is fetched.
        verify: compare the hash of every file with the manifest's, see ``ExportedRanker.load``.

    Raises:
        FileNotFoundError, ValueError: not an export folder, not a whole one, or a damaged one.

    Example:
        >>> ranker = placerank.load("runs/demo/export")                                        # doctest: +SKIP
        >>> ranker.rank("ann", (40.7, -74.0), 1714564800, [("cafe-3", 1714478400)])            # doctest: +SKIP
    """
    folder = fetched(place(Path(export)))
    generates = (folder / SETTINGS).is_file() and not (folder / SCORER).is_file()
    ranker = VisitRanker.load(folder, verify) if generates else TowerRanker.load(folder, verify)
    ranker.folder = folder
    return ranker
