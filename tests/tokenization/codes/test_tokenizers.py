"""The behaviour that every tokenizer has, run on each of them."""

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from placerank.tokenization.codes import tokenizer as tokenizer_module
from placerank.tokenization.codes.settings import codes_for
from placerank.tokenization.codes.tokenizers import (
    TOKENIZERS,
    HGITOptions,
    KMeansOptions,
    ResidualKMeans,
    RQVAEOptions,
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    register_tokenizer,
    tokenizer_type,
)
from placerank.tokenization.ranks import joined
from placerank.tokenization.text.store import write_embeddings

ROWS, DIM, LEVELS, CODES = 500, 24, 3, 16
OPTIONS: dict[type, Any] = {
    HGITOptions: HGITOptions(epochs=2, iterations=4, batch_rows=128, epoch_steps=6),
    KMeansOptions: KMeansOptions(iterations=5),
    RQVAEOptions: RQVAEOptions(hidden=[48], latent=12, epochs=6, batch_rows=50, epoch_steps=25, lr=5e-3, iterations=3),
}
every = pytest.mark.parametrize("name", sorted(TOKENIZERS))


def world(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, pa.Table]:
    """Embeddings that follow from district and category, and noise; and the items."""
    g = torch.Generator().manual_seed(1)
    of_district, of_category = torch.randn(10, DIM, generator=g), torch.randn(6, DIM, generator=g)
    g.manual_seed(seed)
    district, category = torch.randint(10, (rows,), generator=g), torch.randint(6, (rows,), generator=g)
    x = of_district[district] + 0.7 * of_category[category] + 0.4 * torch.randn(rows, DIM, generator=g)
    rng = np.random.default_rng(seed)
    d = district.numpy()
    items = pa.table(
        {
            "item_id": np.arange(rows) + 1000 * seed,
            "category": pa.array([["Dining", f"k{c}"] for c in category.tolist()]),
            "brand": pa.array([None if b > 2 else f"b{b}" for b in rng.integers(0, 9, rows)], pa.string()),
            "lat": 30 + d / 10 + rng.normal(0, 0.005, rows),
            "lon": 120 + d / 7 + rng.normal(0, 0.005, rows),
            "province": [f"p{k // 5}" for k in d],
            "city": [f"c{k // 2}" for k in d],
            "district": [f"d{k}" for k in d],
        }
    )
    return torch.nn.functional.normalize(x, dim=1), items


def make(name: str, **changes: Any) -> Tokenizer:
    kind = tokenizer_type(name)
    return kind(TokenizerConfig(**{"levels": LEVELS, "codes": CODES, **changes}), OPTIONS[kind.options_type])


@cache
def fitted(name: str, rows: int = ROWS, codes: int = CODES) -> Tokenizer:
    """One fit of a tokenizer on ``world(rows)``, for all tests that only read it."""
    return make(name, codes=codes).fit(*world(rows))


def explained(x: Tensor, decoded: Tensor) -> float:
    return 1 - float((x - decoded).square().sum() / (x - x.mean(0)).square().sum())


@every
def test_codes_and_reconstructions_have_their_shapes(name: str) -> None:
    x, items = world()
    tokenizer = fitted(name)
    codes = tokenizer.encode(x, items)
    assert codes.shape == (ROWS, LEVELS) and codes.dtype == torch.int64
    assert set(codes.unique().tolist()) <= set(range(CODES))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (ROWS, DIM) and decoded.dtype == torch.float32


@every
def test_more_levels_explain_more(name: str) -> None:
    x, items = world()
    tokenizer = fitted(name)
    codes = tokenizer.encode(x, items)
    one, three = (explained(x, tokenizer.decode(codes[:, :levels])) for levels in (1, 3))
    assert three > 0.5, f"three levels explain {three:.2f}"
    if name in ("hgit", "res_kmeans"):  # a decoder is trained on whole codes, not on prefixes
        assert 0.2 < one < three


@every
def test_every_level_uses_most_of_its_codes(name: str) -> None:
    x, items = world()
    codes = fitted(name).encode(x, items)
    used = [len(level.unique()) for level in codes.T]
    assert min(used) >= CODES // 2, f"codes used: {used}"


@every
def test_two_fits_with_one_seed_are_the_same_and_another_seed_is_not(name: str) -> None:
    x, items = world()
    a, b, c = (make(name, seed=seed).fit(x, items) for seed in (3, 3, 4))
    assert a.state.keys() == b.state.keys()
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    assert torch.equal(a.encode(x, items), b.encode(x, items))
    assert not torch.equal(a.encode(x, items), c.encode(x, items))


@every
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    x, items = world()
    tokenizer = make(name, capacity=0).fit(x, items)
    tokenizer.save(tmp_path / "t", {"embeddings": "abc"})
    again = load_tokenizer(tmp_path / "t")
    assert type(again) is type(tokenizer)
    assert (again.config, again.options, again.dim) == (tokenizer.config, tokenizer.options, DIM)
    codes = tokenizer.encode(x, items)
    assert torch.equal(again.encode(x, items), codes)
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))
    assert {p.name for p in (tmp_path / "t").iterdir()} == {"codebooks.safetensors", "manifest.json"}


@every
def test_a_damaged_codebook_is_told(name: str, tmp_path: Path) -> None:
    fitted(name, 60, 4).save(tmp_path)
    path = tmp_path / "codebooks.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"codebooks.safetensors: content differs from what was written"):
        load_tokenizer(tmp_path)


@every
def test_new_items_are_encoded_without_refitting_each_by_itself(name: str) -> None:
    tokenizer = fitted(name)
    before = {k: v.clone() for k, v in tokenizer.state.items()}
    new, new_items = world(40, seed=7)
    codes = tokenizer.encode(new, new_items)
    assert codes.shape == (40, LEVELS)
    assert all(torch.equal(before[k], tokenizer.state[k]) for k in before)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.encode(new[order], new_items.take(pa.array(order.numpy()))), codes[order])
    assert explained(new, tokenizer.decode(codes)) > 0.3


@every
def test_streamed_is_in_memory_and_a_store_is_a_tensor(name: str, tmp_path: Path) -> None:
    x, items = world()
    store = write_embeddings(tmp_path / "e", items["item_id"], x)
    a, b = fitted(name), make(name).fit(store, items)
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    whole = a.encode(x, items)
    assert torch.equal(a.encode(x, items, rows=37), whole)
    assert torch.equal(a.encode(store, items, rows=64), whole)
    assert torch.equal(torch.cat(list(a.encode_blocks(store, items, rows=100, start=200))), whole[200:])


@every
def test_equal_items_get_equal_codes(name: str) -> None:
    x, items = world(100)
    twice = torch.arange(100).repeat(2)
    codes = (
        make(name)
        .fit(x[twice], items.take(pa.array(twice.numpy())))
        .encode(x[twice], items.take(pa.array(twice.numpy())))
    )
    assert torch.equal(codes[:100], codes[100:])


@every
def test_more_codes_than_different_items_leave_codes_unused(name: str) -> None:
    x, items = world(5)
    rows = torch.arange(40) % 5
    items = items.take(pa.array(rows.numpy()))
    tokenizer = make(name).fit(x[rows], items)
    codes = tokenizer.encode(x[rows], items)
    assert len(codes.unique(dim=0)) <= 5
    assert torch.isfinite(tokenizer.decode(codes)).all()
    if name in ("hgit", "res_kmeans"):
        assert len(codes.unique(dim=0)) == 5 and explained(x[rows], tokenizer.decode(codes)) > 0.99


def test_codes_follow_the_number_of_items() -> None:
    sizes = (1, 10, 16, 1_000, 1_500, 2_800, 3_000, 5_000, 6_000, 20_000, 10**6)
    assert [codes_for(n) for n in sizes] == [1, 10, 16, 16, 32, 32, 64, 64, 128, 256, 512]


def test_a_number_of_codes_that_was_left_open_is_known_once_fitted(tmp_path: Path) -> None:
    x, items = world(40)
    tokenizer = ResidualKMeans(TokenizerConfig(levels=2)).fit(x, items)
    assert tokenizer.config.codes == 16 and int(tokenizer.encode(x).max()) < 16
    tokenizer.save(tmp_path / "kept")
    assert load_tokenizer(tmp_path / "kept").config == tokenizer.config


@every
def test_more_codes_than_items_is_told(name: str) -> None:
    x, items = world(10)
    with pytest.raises(ValueError, match=r"codebook.codes=16 is more than the 10 items there are: expected at most 10"):
        make(name).fit(x, items)
    with pytest.raises(ValueError, match=r"codebook.codes=16 is more than the 1 item there are"):
        make(name).fit(x[:1], items[:1])


@every
def test_one_item_can_be_tokenized(name: str) -> None:
    x, items = world(1)
    if name == "hgit":
        with pytest.raises(ValueError, match=r"expected at least one of .* that differs between items"):
            make(name, codes=1).fit(x, items)
        return
    tokenizer = make(name, codes=1).fit(x, items)
    assert tokenizer.encode(x, items).tolist() == [[0] * LEVELS]
    torch.testing.assert_close(tokenizer.decode(torch.zeros(1, LEVELS, dtype=torch.int64)), x, atol=1e-3, rtol=0)


@every
def test_all_embeddings_alike_is_told(name: str) -> None:
    x, items = world(50)
    with pytest.raises(ValueError, match=r"the embeddings of all 50 items looked at are the same"):
        make(name).fit(x[:1].expand(50, -1), items)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told(name: str, value: float, tmp_path: Path) -> None:
    x, items = world(60)
    bad = x.clone()
    bad[41, 3] = value
    with pytest.raises(ValueError, match=r"row 41 holds NaN or infinity"):
        make(name, codes=4).fit(bad, items)
    tokenizer = fitted(name, 60, 4)
    with pytest.raises(ValueError, match=r"row 41 holds NaN or infinity"):
        tokenizer.encode(bad, items, rows=16)


@every
def test_what_does_not_fit_is_told(name: str) -> None:
    x, items = world(60)
    tokenizer = make(name, codes=4)
    with pytest.raises(ValueError, match=f"this {name} has no codebooks yet: call fit"):
        tokenizer.encode(x, items)
    with pytest.raises(ValueError, match=r"items: got 59 rows for 60 vectors"):
        tokenizer.fit(x, items[:59])
    with pytest.raises(ValueError, match=r"vectors: got \(60,\) torch.float32, expected \[N, D\]"):
        tokenizer.fit(x[:, 0], items)
    with pytest.raises(ValueError, match=r"vectors: got no rows"):
        tokenizer.fit(x[:0], items[:0])
    tokenizer.fit(x, items)
    with pytest.raises(ValueError, match=f"got 20 dimensions, this {name} was fitted on {DIM}"):
        tokenizer.encode(x[:, :20], items)
    with pytest.raises(ValueError, match=r"codes: got 0 to 4, expected 0 to 3"):
        tokenizer.decode(torch.tensor([[0, 4, 1]]))
    with pytest.raises(ValueError, match=r"codes: got \(1, 4\) torch.int64, expected int64 \[N, 1 to 3\]"):
        tokenizer.decode(torch.zeros(1, 4, dtype=torch.int64))


def fit_and_die(name: str, path: Path, last: int) -> None:
    """Fit, and be killed after the round ``last`` has been saved."""
    save = tokenizer_module._Checkpoint.save

    def dying(self: Any, state: Any, done: int) -> None:
        if done > last:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, state, done)

    tokenizer_module._Checkpoint.save = dying  # type: ignore[method-assign]
    x, items = world()
    make(name).fit(x, items, checkpoint=path)


@every
def test_killed_and_resumed_is_undisturbed(name: str, tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    x, items = world()
    undisturbed = fitted(name)
    path = tmp_path / "fit.safetensors"
    ranks(1, fit_and_die, name, path, 2, killed=True)
    assert path.is_file()
    resumed = make(name).fit(x, items, checkpoint=path)
    assert all(torch.equal(undisturbed.state[k], resumed.state[k]) for k in undisturbed.state)
    with pytest.raises(ValueError, match=r"fit.safetensors is of another fit"):
        make(name, seed=5).fit(x, items, checkpoint=path)
    with pytest.raises(ValueError, match=r"fit.safetensors is of another fit"):
        make(name).fit(x * 2 + 1, items, checkpoint=path)


def fit_on_ranks(name: str) -> tuple[dict[str, Tensor], Tensor]:
    x, items = world()
    with joined():
        tokenizer = make(name).fit(x, items)
        return tokenizer.state, tokenizer.encode(x, items)


@every
def test_ranks_agree_with_each_other_and_with_one(name: str, ranks: Callable[..., list[Any]]) -> None:
    _, codes = fit_on_ranks(name)
    (first, first_codes), (second, second_codes), (_, third_codes) = ranks(3, fit_on_ranks, name)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(first_codes, second_codes) and torch.equal(first_codes, third_codes)
    # Sums over ranks round differently, and training carries that on.
    assert float((first_codes == codes).float().mean()) > 0.9


@every
def test_capacity_bounds_the_fullest_code(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, items = world(1000)
    x = torch.where(torch.rand(1000, 1, generator=g) < 0.7, x[:1] + 0.3 * torch.randn(1000, DIM, generator=g), x)
    if name == "unified_sid":
        with pytest.raises(ValueError, match=r"capacity=1.5: unified_sid chooses by cosine"):
            make(name, codes=8, capacity=1.5).fit(x, items)
        return
    free, bound = (make(name, codes=8, capacity=c).fit(x, items) for c in (0, 1.5))
    fullest = lambda t: max(int(level.bincount().max()) for level in t.encode(x, items).T)  # noqa: E731
    assert fullest(bound) <= 1.5 * 1000 / 8 < fullest(free)


def test_names_are_told_and_taken_once() -> None:
    with pytest.raises(ValueError, match=r"tokenizer 'vq' does not exist; there are hgit, res_kmeans, rqvae"):
        tokenizer_type("vq")
    with pytest.raises(ValueError, match=r"tokenizer 'hgit' is already registered"):
        register_tokenizer(tokenizer_type("hgit"))
    with pytest.raises(ValueError, match=r"hgit: got options KMeansOptions, expected HGITOptions"):
        tokenizer_type("hgit")(TokenizerConfig(), KMeansOptions())
    with pytest.raises(ValueError, match=r"codebook.capacity=0.5: expected more than 1"):
        TokenizerConfig(capacity=0.5)
