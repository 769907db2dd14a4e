"""Settings of the generative rankers. Imports nothing of them: settings are read where they are not run, too."""

from dataclasses import dataclass
from typing import Any

from ...data.plain import check_numbers


@dataclass(kw_only=True)
class GeneratorConfig:
    """Sizes of the default generative ranker."""

    columns: int = 64
    """d: columns of tokens and layers."""
    heads: int = 4
    """Attention heads, of columns / heads each."""
    layers: int = 2
    """Blocks of the encoder, and of the decoder."""
    hidden: int = 256
    """Columns between the two linear layers of a block."""
    dropout: float = 0.1
    """In training, in blocks and on tokens."""
    item_dropout: float = 0.2
    """Share of the visits whose item's row is left out in training, so that codes are learned that new items have."""
    window: int = 32
    """Visits that one of them looks back on in a layer of the encoder, itself among them."""
    memory: int = 50
    """Visits that the decoder looks back on."""
    copied: int = 100
    """Visits that may be copied."""
    ngrams: bool = True
    """Whether prefixes of two and three codes have rows of their own, in tables of features.ngram_rows."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("columns", "heads", "layers", "hidden", "window", "memory", "copied"), 1)
        check_numbers(self, "ranker.generative", least=least)
        if self.columns % self.heads:
            raise ValueError(
                f"ranker.generative.columns={self.columns}: expected a multiple of ranker.generative.heads={self.heads}"
            )
        for name in ("dropout", "item_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"ranker.generative.{name}={getattr(self, name)}: expected a share in [0, 1)")

    @property
    def history(self) -> int:
        """Visits that all a target is told of follows from, however many more its stretch has."""
        return max(self.memory, self.copied) + self.layers * (self.window - 1) + 1


SETTINGS: dict[str, type[Any]] = {"generative": GeneratorConfig}
"""By the name that ``ranker.kind`` has; they are ``ranker.<name>``."""
