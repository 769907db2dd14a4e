"""Row lookups on the CPU in place of fbgemm's."""

from collections.abc import Callable

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    DenseTableBatchedEmbeddingBagsCodegen,
    OptimType,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from placerank.embeddings.cpu_lookup import use_sorted_lookup


def tables(ours: bool) -> SplitTableBatchedEmbeddingBagsCodegen:
    """Two tables of 50 and 30 rows, the second for two features; filled alike each time."""
    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(50, 8, EmbeddingLocation.HOST, ComputeDevice.CPU), (30, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        feature_table_map=[0, 1, 1],
        pooling_mode=PoolingMode.NONE,
        optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
    )
    generator = torch.Generator().manual_seed(1)
    for weights in made.split_embedding_weights():
        weights.copy_(torch.randn(weights.shape, generator=generator))
    if ours:
        holder = nn.Module()
        holder._lookups = [made]  # type: ignore[assignment]  # as in TorchRec's sharded modules
        assert use_sorted_lookup(holder) == 1
    return made


def spread(x: Tensor) -> Tensor:
    """The same numbers, with others between them in memory."""
    wide = torch.zeros(*x.shape, 2, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


@pytest.mark.parametrize("change", [lambda x: x, spread], ids=["contiguous", "strided"])
def test_rows_and_steps_are_those_of_fbgemm_for_any_strides(change: Callable[[Tensor], Tensor]) -> None:
    """fbgemm's own lookup reads strided ids as if they were not, so it gets contiguous ones."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([2, 0, 3, 1, 4, 0, 1, 1, 2])  # three features of three samples
    ids = torch.randint(0, 30, (int(lengths.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    grad = torch.randn(len(ids), 8, generator=generator)
    theirs, ours = tables(ours=False), tables(ours=True)
    for _ in range(2):
        want, got = theirs(ids, offsets), ours(change(ids), change(offsets))
        torch.testing.assert_close(got, want)
        want.backward(grad)
        got.backward(change(grad))
    for a, b in zip(ours.split_embedding_weights(), theirs.split_embedding_weights(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lengths", [[2, 0, 3, 1, 4, 0, 1, 1, 2], [0] * 9, []], ids=["jagged", "no ids", "no bags"])
def test_rows_of_dense_parameters(lengths: list[int]) -> None:
    """fbgemm's own lookup would add up the rows of a bag. Two tables, the second for two features."""
    made = DenseTableBatchedEmbeddingBagsCodegen(
        [(50, 8), (30, 8)], feature_table_map=[0, 1, 1], pooling_mode=PoolingMode.NONE, use_cpu=True
    )
    holder = nn.Module()
    holder._lookups = [made]  # type: ignore[assignment]
    assert use_sorted_lookup(holder) == 1
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor(lengths, dtype=torch.int64)
    ids = torch.randint(0, 30, (int(counts.sum()),), generator=generator)
    first = int(counts[: len(counts) // 3].sum())  # ids of the first feature
    grad = torch.randn(len(ids), 8, generator=generator)
    tables = [w.detach().clone().requires_grad_() for w in made.split_embedding_weights()]
    want = torch.cat([tables[0][ids[:first]], tables[1][ids[first:]]])
    got = made(ids, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    want.backward(grad)
    got.backward(grad)
    wanted = torch.cat([t.grad.flatten() for t in tables if t.grad is not None])
    torch.testing.assert_close(made.weights.grad, wanted)


def test_tables_on_a_gpu_are_left_alone() -> None:
    """Fused ones say a device, dense ones its number."""
    for device in (torch.device("cuda", 0), 0):
        made = tables(ours=False)
        made.current_device = device  # type: ignore[assignment]
        holder = nn.Module()
        holder._lookups = [made]  # type: ignore[assignment]
        assert use_sorted_lookup(holder) == 0
