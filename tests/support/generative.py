"""Small models of semantic IDs for tests of decoding: a transformer that starts at random, and one that is a table."""

from typing import Any

import torch
from torch import Tensor, nn

from placerank.rankers.generative.decoding import Softmax
from placerank.rankers.generative.layers import Memory, Transformer


class SmallModel(nn.Module):
    """A decoder with an embedding and a head a level."""

    def __init__(self, levels: int, codes: int, softmax: Softmax = "existing", **sizes: Any) -> None:
        super().__init__()
        sizes = {"columns": 16, "heads": 2, "head_columns": 8, "hidden": 32, "layers": 2, "dropout": 0.0} | sizes
        self.decoder = Transformer(**sizes, causal=True, memory=True)
        self.softmax: Softmax = softmax
        self.codes = nn.ModuleList([nn.Embedding(codes, sizes["columns"]) for _ in range(levels)])
        self.heads = nn.ModuleList([nn.Linear(sizes["columns"], codes) for _ in range(levels)])
        self.eval()

    def embed(self, level: int, codes: Tensor) -> Tensor:
        return self.codes[level - 1](codes)

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        logits = self.heads[level - 1](hidden)
        return logits.log_softmax(dim=-1) if self.softmax == "own" else logits


def memories(lengths: list[int], columns: int = 16, seed: int = 0) -> Memory:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows, first = torch.randn(sum(lengths), columns, generator=g), torch.randn(len(lengths), columns, generator=g)
    return Memory(rows, offsets, first)
