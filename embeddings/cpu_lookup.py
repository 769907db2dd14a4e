"""Row lookups on the CPU where nothing is pooled: faster than fbgemm's, and for data_parallel tables what it hasn't.

fbgemm's CPU kernel without pooling adds up the gradients of repeated rows in nested hash maps, in one thread: the
largest part of a DIN step on 2 cores (81 of 310 ms with full histories). Here row-wise Adagrad on sorted ids
(``kernels/row_adagrad.py``) changes the same weights and states in place, so state dicts, checkpoints and results stay
what they were. For tables that are dense parameters (data_parallel) fbgemm's CPU kernel adds up the rows of a bag, even
where nothing is to be pooled. On CUDA fbgemm's own kernels are used.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from ..kernels.row_adagrad import row_adagrad_unchecked_


class _Lookup(torch.autograd.Function):
    """Rows of several tables of one width, one after the other; the backward is the optimizer's step.

    ``anchor`` is any tensor that requires a gradient, so that autograd calls the backward. ``tables`` are pairs of
    weights and states; the ids of table i are ids[cuts[i] : cuts[i + 1]].
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        ids: Tensor,
        cuts: list[int],
        tables: list[tuple[Tensor, Tensor]],
        lr: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.step = cuts, tables, lr, eps
        out = tables[0][0].new_empty(cuts[-1], tables[0][0].shape[1])
        for (weights, _), a, b in zip(tables, cuts[:-1], cuts[1:], strict=True):
            torch.index_select(weights, 0, ids[a:b], out=out[a:b])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        (ids,) = ctx.saved_tensors
        cuts, tables, lr, eps = ctx.step
        for (weights, states), a, b in zip(tables, cuts[:-1], cuts[1:], strict=True):
            row_adagrad_unchecked_(weights, states, ids[a:b], grad[a:b], lr, eps)
        return None, None, None, None, None, None


def _forward(tables: SplitTableBatchedEmbeddingBagsCodegen) -> Callable[..., Tensor]:
    weights = tables.split_embedding_weights()
    states = [s[0] for s in tables.split_optimizer_states()]
    features = [(table, len(list(group))) for table, group in groupby(tables.feature_table_map)]
    pairs = [(weights[table], states[table]) for table, _ in features]
    anchor = torch.zeros((), requires_grad=True)

    def forward(indices: Tensor, offsets: Tensor, *_: Any, **__: Any) -> Tensor:
        """As the module's own: indices int [T], offsets int [F * B + 1], feature by feature; to [T, D]."""
        lr, eps = tables.get_learning_rate(), tables.optimizer_args.eps
        batch = (offsets.numel() - 1) // sum(n for _, n in features)
        cuts, first = [0], 0
        for _, count in features:
            first += count * batch
            cuts.append(int(offsets[first]))
        out: Tensor = _Lookup.apply(anchor, indices, cuts, pairs, lr, eps)
        return out

    return forward


def _dense_forward(tables: DenseTableBatchedEmbeddingBagsCodegen) -> Callable[..., Tensor]:
    first_rows = tables.hash_size_cumsum[:-1]  # of each feature's table, among those of all tables laid end to end
    dim = tables.embedding_specs[0][1]

    def forward(indices: Tensor, offsets: Tensor, *_: Any, **__: Any) -> Tensor:
        """As above; the gradient goes to the parameter that holds all tables."""
        batch = (offsets.numel() - 1) // len(first_rows)
        counts = offsets[torch.arange(len(first_rows) + 1) * batch].diff()
        rows = indices + first_rows.repeat_interleave(counts, output_size=len(indices))
        return tables.weights.view(-1, dim).index_select(0, rows)

    return forward


def use_sorted_lookup(model: nn.Module) -> int:
    """Replace the lookup of every fbgemm module in a sharded model that lies on the CPU and pools nothing.

    Args:
        model: after DistributedModelParallel; its tables are trained by fused row-wise Adagrad without weight decay,
            or are dense parameters.

    Returns:
        How many modules were changed.
    """
    lookups = [lookup for m in model.modules() for lookup in getattr(m, "_lookups", [])]
    found = 0
    for tables in (m for lookup in lookups for m in lookup.modules()):
        if getattr(tables, "pooling_mode", None) != PoolingMode.NONE:
            continue
        if tables.current_device != torch.device("cpu"):  # on CUDA dense ones have its number there
            continue
        fused = isinstance(tables, SplitTableBatchedEmbeddingBagsCodegen)
        tables.forward = _forward(tables) if fused else _dense_forward(tables)
        found += 1
    return found
