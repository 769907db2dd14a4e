"""RQ-VAE: its loss and gradients against loops, UnifiedSID's metrics, prefixes, dead centres."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels.codebook import residual_encode_reference
from placerank.tokenization.codes.rqvae import RQVAE, RQVAENgram, RQVAEOptions, UnifiedSID, prefix_ngrams
from placerank.tokenization.codes.tokenizer import TokenizerConfig

DIM, LATENT = 6, 4
OPTIONS = RQVAEOptions(hidden=[5], latent=LATENT, epochs=3, epoch_steps=10, batch_rows=64, iterations=3)


def vectors(rows: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)) * 0.1 + 2


def fitted(kind: type[RQVAE] = RQVAE, levels: int = 3, codes: int = 8) -> RQVAE:
    return kind(TokenizerConfig(levels=levels, codes=codes), OPTIONS).fit(vectors())


def test_loss_is_the_papers() -> None:
    tokenizer, x = fitted(), vectors(7, seed=1)
    state = tokenizer.state
    loss, codes = tokenizer._loss(x, state)
    scaled = (x - state["mean"]) * state["scale"]
    z = torch.relu(scaled @ state["encoder.0.weight"].T + state["encoder.0.bias"])
    z = z @ state["encoder.1.weight"].T + state["encoder.1.bias"]
    want, q = 0.0, torch.zeros_like(z)
    for i in range(7):
        r = z[i]
        for level in range(3):
            e = state["codebooks"][level]
            k = int((r - e).square().sum(1).argmin())
            assert codes[i, level] == k
            want += float((1 + OPTIONS.beta) * (r - e[k]).square().mean())
            r, q[i] = r - e[k], q[i] + e[k]
    y = torch.relu(q @ state["decoder.0.weight"].T + state["decoder.0.bias"])
    y = y @ state["decoder.1.weight"].T + state["decoder.1.bias"]
    want += float((y - scaled).square().mean(1).sum())
    assert float(loss) == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(tokenizer.decode(codes), y / state["scale"] + state["mean"], rtol=1e-4, atol=1e-5)


def test_gradients_go_where_they_should() -> None:
    """Centres move by their own level's error; the encoder sees the decoder straight through, and the commitment."""
    tokenizer, x = fitted(), vectors(9, seed=1)
    state = {k: v.clone().requires_grad_(k not in ("mean", "scale")) for k, v in tokenizer.state.items()}
    loss, codes = tokenizer._loss(x, state)
    loss.backward()
    z = tokenizer._project(x, tokenizer.state)
    want, r = torch.zeros_like(state["codebooks"]), z
    for level in range(3):
        e = tokenizer.state["codebooks"][level][codes[:, level]]
        want[level].index_add_(0, codes[:, level], 2 * (e - r) / LATENT)
        r = r - e
    assert state["codebooks"].grad is not None
    torch.testing.assert_close(state["codebooks"].grad, want, rtol=1e-3, atol=1e-5)

    # The encoder's last bias: the decoder's gradient at q, summed over rows, and the pull to the centres.
    q = (z - r).detach().requires_grad_()
    decoded = tokenizer._unproject(q, tokenizer.state)
    target = (x - tokenizer.state["mean"]) * tokenizer.state["scale"]
    back = (decoded - tokenizer.state["mean"]) * tokenizer.state["scale"]
    ((back - target).square().mean(1).sum()).backward()
    pull, left = torch.zeros_like(z), z
    for level in range(3):
        left = left - tokenizer.state["codebooks"][level][codes[:, level]]
        pull += OPTIONS.beta * 2 * left / LATENT
    assert q.grad is not None and state["encoder.1.bias"].grad is not None
    torch.testing.assert_close(state["encoder.1.bias"].grad, (q.grad + pull).sum(0), rtol=1e-3, atol=1e-4)


def test_training_lowers_the_error() -> None:
    x = vectors(600)
    errors = []
    for epochs in (1, 12):
        options = RQVAEOptions(hidden=[16], latent=LATENT, epochs=epochs, epoch_steps=30, batch_rows=64, lr=3e-3)
        tokenizer = RQVAE(TokenizerConfig(levels=3, codes=16), options).fit(x)
        errors.append(float((x - tokenizer.decode(tokenizer.encode(x))).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_unified_sid_chooses_by_cosine_and_at_last_by_distance() -> None:
    tokenizer, x = fitted(UnifiedSID), vectors(50, seed=1)
    z = tokenizer._project(x, tokenizer.state)
    want = residual_encode_reference(z, tokenizer.state["codebooks"], metric=["cosine", "cosine", "euclidean"])
    assert torch.equal(tokenizer.encode(x), want)
    other = residual_encode_reference(z, tokenizer.state["codebooks"])
    assert not torch.equal(want, other)
    assert fitted(UnifiedSID, levels=1).metric == ["euclidean"]


def test_ngram_codes_are_those_of_an_rqvae() -> None:
    x = vectors()
    assert torch.equal(fitted(RQVAENgram).encode(x), fitted(RQVAE).encode(x))
    assert (RQVAENgram.lookup, RQVAE.lookup) == ("prefix_ngrams", "codes")


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_prefixes_have_one_number_if_and_only_if_they_are_equal(rows: list) -> None:
    codes = torch.tensor(rows)
    numbers = prefix_ngrams(codes, 4)
    for level in range(3):
        assert int(numbers[:, level].max()) < 4 ** (level + 1)
        _, want = np.unique(codes[:, : level + 1].numpy(), axis=0, return_inverse=True)
        _, got = np.unique(numbers[:, level].numpy(), return_inverse=True)
        assert got.tolist() == want.reshape(-1).tolist()


def test_prefixes_beyond_64_bits_are_told() -> None:
    with pytest.raises(ValueError, match=r"8 levels of 512 codes: expected K\^L below 2\^63"):
        prefix_ngrams(torch.zeros(1, 8, dtype=torch.int64), 512)


def test_dead_centres_come_back() -> None:
    """All centres but one far away at the start of an epoch: most are used at its end."""
    tokenizer = RQVAE(TokenizerConfig(levels=2, codes=8), OPTIONS)
    start = RQVAE._start

    def spoiled(self: RQVAE, *args: object) -> dict[str, Tensor]:
        state = start(self, *args)  # type: ignore[arg-type]
        state["codebooks"][:, 1:] = 1e3
        return state

    RQVAE._start = spoiled  # type: ignore[assignment, method-assign]
    try:
        codes = tokenizer.fit(vectors()).encode(vectors())
    finally:
        RQVAE._start = start  # type: ignore[method-assign]
    assert min(len(level.unique()) for level in codes.T) >= 6


def test_settings_that_make_no_sense_are_told() -> None:
    for field, value in (("hidden", [0]), ("latent", 0), ("lr", 0.0), ("beta", -1.0), ("epochs", 0)):
        with pytest.raises(ValueError, match=rf"rqvae\.{field}="):
            RQVAEOptions(**{field: value})
