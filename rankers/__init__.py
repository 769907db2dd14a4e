"""Interest towers and the ranker that wires them."""

from .din import DIN
from .tower import register_tower

register_tower("din", DIN)
