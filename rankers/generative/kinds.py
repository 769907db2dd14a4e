"""The generative rankers by the name that ``ranker.kind`` has; their settings are in ``config.py``."""

from typing import Any

from .index import Index
from .model import Generator, PlaceFacts
from .onerec import OneRec
from .tiger import Tiger

AnyGenerator = Generator | Tiger
KINDS: dict[str, type[Generator] | type[Tiger]] = {"generative": Generator, "tiger": Tiger, "onerec": OneRec}


def make(kind: str, config: Any, facts: PlaceFacts, index: Index, item_columns: int, user_columns: int) -> AnyGenerator:
    """A generative ranker without its tables; see ``Generator``."""
    return KINDS[kind](config, facts, index, item_columns, user_columns)
