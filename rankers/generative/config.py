"""Settings of the generative rankers. Imports nothing of them: settings are read where they are not run, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...data.plain import check_numbers, set_places


@dataclass(kw_only=True)
class GeneratorConfig:
    """Sizes of the default generative ranker."""

    name: ClassVar[str] = "generative"

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
        check_numbers(self, f"ranker.{self.name}", least=least)
        if self.columns % self.heads:
            where = f"ranker.{self.name}"
            raise ValueError(f"{where}.columns={self.columns}: expected a multiple of {where}.heads={self.heads}")
        for name in ("dropout", "item_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"ranker.{self.name}.{name}={getattr(self, name)}: expected a share in [0, 1)")

    @property
    def history(self) -> int:
        """Visits that all a target is told of follows from, however many more its stretch has."""
        return max(self.memory, self.copied) + self.layers * (self.window - 1) + 1


@dataclass(kw_only=True)
class OneRecConfig(GeneratorConfig):
    """Sizes of OneRec; ``hidden`` is what a row passes in the decoder too, shared among its experts."""

    name: ClassVar[str] = "onerec"
    experts: int = 8
    """Experts of each of the decoder's feed-forward layers; 1 is a dense layer."""
    active: int = 2
    """Experts that a row passes."""
    lazy: int = 0
    """OneRec-V2's lazy decoder with so many sets of keys and values for its layers, and no encoder; 0: the full one."""
    session_hours: float = 4.0
    """What a user visits within so many hours of the visit before is one session."""
    joined: float = 0.5
    """Share of a session's visits that, in training, go on with its list instead of a request of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "ranker.onerec", least={"experts": 1, "active": 1})
        if not 0 <= self.lazy <= self.layers:
            raise ValueError(
                f"ranker.onerec.lazy={self.lazy}: expected 0 to ranker.onerec.layers={self.layers}, a set of keys and "
                "values a layer at most"
            )
        if self.active > self.experts or self.hidden % self.active:
            raise ValueError(
                f"ranker.onerec.active={self.active}: expected at most ranker.onerec.experts={self.experts}, and a "
                f"divisor of ranker.onerec.hidden={self.hidden}"
            )
        if not self.session_hours > 0:
            raise ValueError(f"ranker.onerec.session_hours={self.session_hours}: expected more than 0")
        if not 0 <= self.joined <= 1:
            raise ValueError(f"ranker.onerec.joined={self.joined}: expected a share in [0, 1]")

    @property
    def history(self) -> int:
        """As of ``GeneratorConfig``; without an encoder a visit tells nothing of those before it."""
        return max(self.memory, self.copied) + 1 if self.lazy else super().history


@dataclass(kw_only=True)
class TigerConfig:
    """Sizes of TIGER; the published ones unless told."""

    columns: int = 128
    """d: columns of tokens and layers."""
    heads: int = 6
    """Attention heads."""
    head_columns: int = 64
    """Columns of each."""
    layers: int = 4
    """Blocks of the encoder, and of the decoder."""
    hidden: int = 1024
    """Columns between the two linear layers of a block."""
    dropout: float = 0.1
    """In training."""
    visits: int = 20
    """The last so many are seen."""
    user_tokens: int = 2000
    """Different user tokens: users share them by what is left of their row, see ``user_tokens``."""

    def __post_init__(self) -> None:
        names = ("columns", "heads", "head_columns", "layers", "hidden", "visits", "user_tokens")
        check_numbers(self, "ranker.tiger", least=dict.fromkeys(names, 1))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"ranker.tiger.dropout={self.dropout}: expected a share in [0, 1)")

    @property
    def history(self) -> int:
        """Visits that a target needs to see."""
        return self.visits


SETTINGS: dict[str, type[Any]] = {"generative": GeneratorConfig, "tiger": TigerConfig, "onerec": OneRecConfig}
"""By the name that ``ranker.kind`` has; they are ``ranker.<name>``."""


@dataclass(kw_only=True)
class PreferenceConfig:
    """Preference alignment: a generative ranker that goes on from a run learns which of its places a ranker likes."""

    ranker: Path | None = None
    """Run of a ranker of candidates over the same places, the reward model. Default: no alignment."""
    objective: str | None = None
    """Of a ranker of several objectives, which one is the reward; default: the first."""
    how: Literal["policy", "dpo"] = "policy"
    """policy: all candidates of a request by their advantage (OneRec-V2); dpo: the best against the worst."""
    candidates: int = 32
    """Places a request, at most: the best of those within reach by the model as it is."""
    within_km: float = 10.0
    """The reach; inf: all places. A request without a place goes by the user's last visit."""
    weight: float = 2.0
    """Of the alignment's loss, beside the nats of visits."""
    beta: float = 0.1
    """Of dpo; of rounds of one step, as training has them, it only scales the gradient."""

    def __post_init__(self) -> None:
        check_numbers(self, "preference", ("within_km",), least={"candidates": 2})
        set_places(self)
        for name in ("within_km", "weight", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"preference.{name}={getattr(self, name)}: expected more than 0")
