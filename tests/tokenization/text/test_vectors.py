"""What a tokenizer reads of embeddings: samples, blocks, and that numbers which are not finite are told."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from placerank.tokenization.ranks import Ranks
from placerank.tokenization.text.store import write_embeddings
from placerank.tokenization.text.vectors import ahead, block, blocks, check_finite, draw_sample

CPU = torch.device("cpu")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_sample_is_random_rows_with_their_mean_and_variance(tmp_path: Path) -> None:
    x = torch.randn(100, 4, generator=rng()) + 5
    store = write_embeddings(tmp_path / "e", pa.array(range(100)), x)
    for source in (x, store):
        sample = draw_sample(source, 60, 10, rng(), Ranks(), CPU)
        assert len(sample.rows.unique()) == sample.total == 60
        assert torch.equal(sample.x, x[sample.rows]) and torch.equal(sample.seeds, x[sample.seed_rows])
        assert torch.equal(sample.seed_rows, sample.rows[:10])
        torch.testing.assert_close(sample.mean, sample.x.mean(0))
        assert sample.variance == pytest.approx(float((sample.x - sample.x.mean(0)).square().sum(1).mean()), rel=1e-5)
    assert draw_sample(x, 1000, 10, rng(), Ranks(), CPU).total == 100


def test_blocks_are_all_rows_in_order(tmp_path: Path) -> None:
    x = torch.randn(23, 4, generator=rng())
    store = write_embeddings(tmp_path / "e", pa.array(range(23)), x)
    for source in (x, store, x.half()):
        want = x.half().float() if isinstance(source, torch.Tensor) and source.dtype == torch.float16 else x
        parts = list(blocks(source, 10, CPU))
        assert [first for first, _ in parts] == [0, 10, 20]
        assert torch.equal(torch.cat([part for _, part in parts]), want)
        assert torch.equal(block(source, 5, 17, CPU), want[5:17])


def test_the_first_row_that_is_not_finite_is_named() -> None:
    x = torch.zeros(6, 2)
    x[3, 1], x[5, 0] = float("inf"), float("nan")
    with pytest.raises(ValueError, match=r"row 13 holds NaN or infinity, and so do 1 more of the 6 rows"):
        check_finite(x, 10, x)
    with pytest.raises(ValueError, match=r"row 70 holds"):
        check_finite(x, torch.tensor([40, 50, 60, 70, 80, 90]), x)
    large = torch.full((3, 2), 3e38)
    assert check_finite(large, 0, large) is large, "a sum that overflows is no fault of the numbers"


def test_reading_ahead_changes_nothing_and_keeps_one_step_ahead() -> None:
    made: list[int] = []

    def parts() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i

    assert list(ahead(parts())) == list(range(5)) == made
    assert list(ahead(iter(()))) == []
    made.clear()
    some = ahead(parts())
    assert next(some) == 0
    some.close()
    assert len(made) <= 2


def test_what_goes_wrong_ahead_is_told() -> None:
    def parts() -> Iterator[int]:
        yield 1
        raise ValueError("bad row")

    some = ahead(parts())
    assert next(some) == 1
    with pytest.raises(ValueError, match="bad row"):
        next(some)
