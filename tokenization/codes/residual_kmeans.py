"""Res-KMeans (QARM, Luo et al. 2024): k-means on the embeddings, then on what it leaves over, and so on."""

import torch

from .kmeans import add_level
from .settings import KMeansOptions
from .tokenizer import FitData, Round, State, Tokenizer


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
