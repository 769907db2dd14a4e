"""Neighbours, coverage and clusters of embeddings against slow loops and scikit-learn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from placerank.tokenization.judging.coverage import cluster_nmi, nearest_neighbours, neighbour_coverage
from placerank.tokenization.text.store import write_embeddings


def vectors(rows: int = 240, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_those_of_the_full_matrix(tmp_path: Path) -> None:
    x, rows = vectors(), torch.tensor([0, 5, 77, 239])
    cosine = cosine_similarity(x[rows].numpy(), x.numpy())
    cosine[np.arange(4), rows.numpy()] = -2
    want = np.argsort(-cosine, axis=1, kind="stable")[:, :12]
    store = write_embeddings(tmp_path / "e", pa.array(range(240)), x)
    for source in (x, store):
        at, value = nearest_neighbours(source, rows, 12, block_rows=50)
        assert at.numpy().tolist() == want.tolist()
        np.testing.assert_allclose(value.numpy(), np.take_along_axis(cosine, want, 1), atol=1e-6)


def test_coverage_is_that_of_a_loop() -> None:
    x, before = vectors(), vectors(seed=1)
    rng = np.random.default_rng(0)
    city, district = rng.integers(-1, 4, 240), rng.integers(0, 20, 240)
    found = neighbour_coverage(x, {"city": city, "district": district}, at=(5, 10), queries=240, reference=before)
    cosine, other = cosine_similarity(x), cosine_similarity(before)
    np.fill_diagonal(cosine, -2)
    for k in (5, 10):
        top = np.argsort(-cosine, axis=1)[:, :k]
        shares = [np.mean([city[j] == city[i] for j in top[i]]) for i in range(240) if city[i] >= 0]
        assert found["city"][k] == pytest.approx(np.mean(shares))
        assert found["district"][k] == pytest.approx(np.mean(district[top] == district[:, None]))
        assert found["similarity"][k] == pytest.approx(np.take_along_axis(cosine, top, 1).mean(), abs=1e-6)
        assert found["reference_similarity"][k] == pytest.approx(np.take_along_axis(other, top, 1).mean(), abs=1e-6)


def test_a_sample_of_queries_is_the_same_for_a_seed_and_close_to_all() -> None:
    x, label = vectors(1000), np.arange(1000) % 3
    some = neighbour_coverage(x, {"city": label}, queries=500, seed=2)
    assert some == neighbour_coverage(x, {"city": label}, queries=500, seed=2)
    assert some["queries"] == 500
    whole = neighbour_coverage(x, {"city": label}, queries=5000)
    assert whole["queries"] == 1000
    assert abs(some["city"][100] - whole["city"][100]) < 0.02


def test_few_items_have_few_neighbours() -> None:
    found = neighbour_coverage(vectors(8), {"city": np.zeros(8, int)})
    assert found["city"] == {5: 1.0} and set(found["similarity"]) == {5}
    assert neighbour_coverage(vectors(1), {})["similarity"] == {}
    with pytest.raises(ValueError, match="reference: got 7 embeddings, expected one for each of the 8 items"):
        neighbour_coverage(vectors(8), {}, reference=vectors(7))


def test_clusters_find_regions_that_embeddings_tell_apart() -> None:
    place = np.arange(600) % 6
    centres = 4 * torch.eye(6, 8)
    x = centres[torch.from_numpy(place)] + 0.1 * vectors(600, 8)
    noise = np.random.default_rng(0).integers(0, 6, 600)
    found = cluster_nmi(x, {"city": place, "noise": noise, "one": np.zeros(600, int)})
    assert found["city"] == pytest.approx(1) and found["one"] is None
    assert found["noise"] is not None and found["noise"] < 0.05
