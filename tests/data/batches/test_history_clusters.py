"""The most frequent cluster of a history, against counting one by one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.batches.history_clusters import history_clusters, history_clusters_reference


def by_hand(histories: list[list[int]], recent: int) -> list[int]:
    out = []
    for history in histories:
        seen = [c for c in history[-recent:] if c]
        # latest first, so that of equally frequent ones max finds the one visited last
        out.append(max(reversed(seen), key=seen.count) if seen else 0)
    return out


@settings(deadline=None, max_examples=150)
@given(
    histories=st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=8),
    recent=st.sampled_from([1, 3, 64]),
)
def test_both_paths_equal_counting_by_hand(histories: list[list[int]], recent: int) -> None:
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    clusters = torch.tensor([c for h in histories for c in h], dtype=torch.int64)
    want = by_hand(histories, recent)
    assert history_clusters(offsets, clusters, recent).tolist() == want
    assert history_clusters_reference(offsets, clusters, recent).tolist() == want


def test_many_users_on_several_threads() -> None:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 80, (3000,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    clusters = torch.randint(0, 1 << 40, (int(offsets[-1]),), generator=g) % 7
    torch.set_num_threads(2)
    try:
        got = history_clusters(offsets, clusters)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(got, history_clusters_reference(offsets, clusters))
