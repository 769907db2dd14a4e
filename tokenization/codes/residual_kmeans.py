"""Res-KMeans (QARM, Luo et al. 2024): k-means on the embeddings, then on what it leaves over, and so on."""

from dataclasses import dataclass

import torch

from ...data.plain import check_numbers
from .kmeans import add_level
from .tokenizer import FitData, Round, State, Tokenizer


@dataclass(kw_only=True)
class KMeansOptions:
    """Settings of Res-KMeans."""

    iterations: int = 15
    """Lloyd's iterations of each level."""

    def __post_init__(self) -> None:
        check_numbers(self, "kmeans", least={"iterations": 1})


class ResidualKMeans(Tokenizer):
    """Each level is k-means on the residual of the levels before it; codes are nearest centres, greedily."""

    name = "res_kmeans"
    options_type = KMeansOptions
    options: KMeansOptions

    def _rounds(self, data: FitData) -> list[Round]:
        return [Round(f"level {level + 1}", self._level) for level in range(self.config.levels)]

    def _level(self, state: State, data: FitData, generator: torch.Generator) -> State:
        x, seeds, iterations = data.sample.x, data.sample.seeds, self.options.iterations
        books = state.get("codebooks")
        state["codebooks"] = add_level(books, x, seeds, self.config.codes, iterations, generator, data.ranks)
        return state
