"""The blocks: a T5 of transformers with the same weights, and a sequence against the same as a tree."""

import pytest
import torch
from generative import memories
from torch import Tensor
from torch.nn import functional as F

from placerank.benchmarks.t5 import of_t5, small_t5
from placerank.rankers.generative.layers import EPS, Attention, Dropout, Memory, Norm, RelativeBias, Transformer


def transformer(**changes: bool) -> Transformer:
    sizes = {"columns": 16, "heads": 2, "head_columns": 12, "hidden": 32, "layers": 3, "dropout": 0.0}
    return Transformer(**(sizes | changes)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair() -> tuple:
    model = small_t5(vocabulary=31, columns=24, heads=3, head_columns=16, hidden=40, layers=3, seed=1)
    return model, *of_t5(model)


@pytest.mark.parametrize("lengths", [[1], [70], [3, 9, 5]], ids=str)
@torch.no_grad()
def test_encoder_and_decoder_are_t5s(pair: tuple, lengths: list[int]) -> None:
    model, encoder, decoder = pair
    B, S = len(lengths), max(lengths)
    tokens, targets = torch.randint(1, 31, (B, S)), torch.randint(1, 31, (B, 40))
    mask = torch.arange(S) < torch.tensor(lengths)[:, None]
    want = model(tokens, attention_mask=mask.long(), decoder_input_ids=targets, output_hidden_states=True)
    memory = encoder(model.shared(tokens), torch.tensor(lengths))
    torch.testing.assert_close(memory[mask], want.encoder_last_hidden_state[mask], rtol=1e-4, atol=1e-5)
    got = decoder(model.shared(targets), memory=memory, memory_lengths=torch.tensor(lengths))
    torch.testing.assert_close(got, want.decoder_hidden_states[-1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_tree_is_its_sequences() -> None:
    """Levels of 1, 3 and 4 nodes a request, in any order of parents, request by request."""
    decoder = transformer(causal=True, memory=True)
    lengths = [5, 1, 9]
    memory = memories(lengths)
    levels = [[1, 1, 1], [3, 2, 1], [4, 0, 2]]
    state = decoder.start(memory, sum(map(sum, levels)) + 7)
    at, paths, requests = 0, [], []
    rows = torch.zeros(3, 0, dtype=torch.int64)
    for depth, counts in enumerate(levels):
        of = torch.repeat_interleave(torch.tensor(counts))
        x = torch.randn(len(of), 16)
        if depth:
            parents = torch.tensor([torch.randint(0, len(requests), (50,)).tolist()]).flatten()
            parents = torch.cat([parents[torch.tensor(requests)[parents] == b][:n] for b, n in enumerate(counts)])
            rows, above = rows[parents], [paths[p] for p in parents.tolist()]
        else:
            above = [torch.zeros(0, 16)] * 3
        own = torch.arange(at, at + len(of))
        rows = torch.cat([rows, own[:, None]], dim=1)
        offsets = [0, *torch.tensor(counts).cumsum(0).tolist()]
        got = decoder.step(x, rows, offsets, state)
        at += len(of)
        paths, requests = [torch.cat([p, y[None]]) for p, y in zip(above, x, strict=True)], of.tolist()
        for path, b, row in zip(paths, requests, got, strict=True):
            one = memory.some(b, b + 1)
            want = decoder(path[None], memory=one.rows[None])[0, -1]
            torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_and_what_is_later_change_nothing() -> None:
    lengths = torch.tensor([3, 7])
    x, y = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    there = torch.arange(7) < lengths[:, None]
    for encoder in (transformer(), transformer(causal=True)):
        mixed = torch.where(there[..., None], x, y)
        torch.testing.assert_close(encoder(mixed, lengths)[there], encoder(x, lengths)[there])
    changed = x.clone()
    changed[:, 4:] = 0
    causal = transformer(causal=True)
    torch.testing.assert_close(causal(changed)[:, :4], causal(x)[:, :4])
    assert not torch.allclose(transformer()(changed)[:, :4], transformer()(x)[:, :4])


def test_padded_memory_as_rows() -> None:
    x, first = torch.randn(3, 5, 16), torch.randn(3, 16)
    memory = Memory.of_padded(x, torch.tensor([2, 0, 5]), first)
    assert memory.offsets.tolist() == [0, 2, 2, 7]
    assert torch.equal(memory.rows, torch.cat([x[0, :2], x[2]]))
    assert torch.equal(memory.some(1, 3).rows, x[2]) and memory.some(1, 3).offsets.tolist() == [0, 0, 5]


def by_hand(distance: int, causal: bool) -> int:
    """T5's bucket of a key that lies so many rows behind the query, of 32 up to 128."""
    from math import log

    buckets, ahead = (32, 0) if causal else (16, 16 * (distance < 0))
    far = max(distance, 0) if causal else abs(distance)
    exact = buckets // 2
    if far < exact:
        return ahead + far
    return ahead + min(buckets - 1, exact + int(log(far / exact) / log(128 / exact) * (buckets - exact) + 1e-6))


@pytest.mark.parametrize("causal", [True, False])
def test_buckets(causal: bool) -> None:
    bias = RelativeBias(1, causal)
    bias.weight.data[:, 0] = torch.arange(32.0)
    behind = torch.arange(-300, 300)
    assert bias(behind)[0].tolist() == [by_hand(int(d), causal) for d in behind]


def test_gradients_reach_every_weight() -> None:
    decoder = transformer(causal=True, memory=True)
    decoder(torch.randn(2, 4, 16), memory=torch.randn(2, 5, 16)).square().sum().backward()
    missing: list[str] = [n for n, p in decoder.named_parameters() if p.grad is None or not bool(_any(p.grad))]
    assert missing == []


def _any(x: Tensor) -> Tensor:
    return (x != 0).any()


def test_sequences_that_share_a_memory_are_those_that_have_their_own() -> None:
    torch.manual_seed(0)
    decoder = Transformer(
        columns=8, heads=2, head_columns=4, hidden=16, layers=2, dropout=0.0, causal=True, memory=True
    ).eval()
    with torch.no_grad():
        decoder.bias.weight.normal_()
        x, memory = torch.randn(4, 3, 8), torch.randn(2, 5, 8)
        group, number = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 2, 1])
        sees = torch.rand(4, 5) < 0.5
        sees[:, 0] = True
        found = decoder.together(x, memory, group, number, sees)
        for i in range(4):
            alone = decoder(x[i : i + 1], memory=memory[group[i]][sees[i]][None])
            torch.testing.assert_close(found[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (1, 1, 1, 1), (2, 4, 1, 9)], ids=str)
def test_attention_with_a_bias_that_learns_is_pytorchs(shape: tuple[int, ...]) -> None:
    """Values and gradients, biases of all heads and requests, of some and of one."""
    B, A, S, M = shape
    columns = 3 * A
    attention = Attention(columns, A, 3)
    x, memory = (torch.randn(B, rows, columns, requires_grad=True) for rows in (S, M))
    for size in ((1, A, S, M), (B, 1, S, M), (B, A, S, M)):
        bias = torch.randn(size, requires_grad=True)
        with torch.no_grad():
            bias[..., 1:] = bias[..., 1:].masked_fill(torch.rand(bias[..., 1:].shape) < 0.3, -torch.inf)
        got = attention(x, memory, bias)
        q, (k, v) = attention.queries(x), attention.keys_values(memory)
        want = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), bias, scale=1.0)
        want = attention.out(want.transpose(1, 2).flatten(2))
        torch.testing.assert_close(got, want)
        inputs = [x, memory, bias, attention.maps.weight]
        weight = torch.randn_like(got)
        pairs = zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (got, want)), strict=True)
        for own, theirs in pairs:
            torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_dropout_keeps_a_share_and_the_mean(share: float) -> None:
    """And the same for gradients; other elements each time, the same ones after the same seed."""
    drop, x = Dropout(share), torch.ones(999, 1001, requires_grad=True)
    torch.manual_seed(3)
    got = drop(x)
    kept = got > 0
    assert float(kept.float().mean()) == pytest.approx(1 - share, abs=1e-3)
    torch.testing.assert_close(got[kept], torch.full((int(kept.sum()),), 1 / (1 - share)))
    got.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, got)
    columns, rows = kept.float().mean(0) - (1 - share), kept.float().mean(1) - (1 - share)
    assert float(columns.abs().max()) < 0.08 and float(rows.abs().max()) < 0.08
    assert not torch.equal(drop(x), got)
    torch.manual_seed(3)
    assert torch.equal(drop(x), got)
    assert drop.eval()(x) is x and Dropout(0.0)(x) is x
    assert drop.train()(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 1), (0, 6), (2, 0, 3)], ids=str)
def test_the_norm_in_training_is_pytorchs(shape: tuple[int, ...]) -> None:
    """A row of zeros among them."""
    own, theirs = Norm(shape[-1], EPS), torch.nn.RMSNorm(shape[-1], EPS)
    with torch.no_grad():
        theirs.weight.copy_(own.weight.normal_())
    x = torch.randn(shape)
    x[..., :1, :] = 0
    x.requires_grad_()
    got, want, weight = own(x), theirs(x), torch.randn(shape)
    torch.testing.assert_close(got, want)
    pairs = zip(
        torch.autograd.grad((got * weight).sum(), [x, own.weight]),
        torch.autograd.grad((want * weight).sum(), [x, theirs.weight]),
        strict=True,
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
