"""SIM's two searches and its attention against the equations, a sample and a visit at a time."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor

from placerank.data.batches.features import Features, Table
from placerank.rankers.dense import RankerConfig, Scorer
from placerank.rankers.exported import export_scorer
from placerank.rankers.towers.search import GAP_DIM, KNOTS, FoundAttention, GapEmbedding, TargetAttention
from placerank.rankers.towers.sim import SIM, SoftSIM
from placerank.rankers.towers.tower import Context, History

D, G, K = 8, 2, 4
LENGTHS = [3, 0, 40, 1, 12]


def make(lengths: list[int], seed: int = 0) -> tuple[Tensor, History, Context]:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    B, T = len(lengths), sum(lengths)
    history = History(torch.randn(T, D, generator=g), offsets, torch.rand(T, G, generator=g) * 13)
    categories = torch.randint(0, 3, (B + T,), generator=g)
    hours, places = torch.zeros(B + T, dtype=torch.int64), torch.full((B + T, 3), torch.nan)
    context = Context(categories[:B], hours[:B], places[:B], places[:B], categories[B:], hours[B:], places[B:])
    return torch.randn(B, D, generator=g), history, context


def visits(history: History, b: int) -> range:
    return range(int(history.offsets[b]), int(history.offsets[b + 1]))


def embedded_gaps(embedding: GapEmbedding, gaps: Tensor) -> Tensor:
    """Row by row between the knots, the gaps side by side: [G * C]."""
    parts = []
    for gap, table in zip(gaps.clamp(0, KNOTS - 1), embedding.weight, strict=True):
        low = min(int(gap), KNOTS - 2)
        parts.append(table[low] + (gap - low) * (table[low + 1] - table[low]))
    return torch.cat(parts)


def with_gaps(embedding: GapEmbedding, history: History, t: int) -> Tensor:
    """z of a visit."""
    return torch.cat([history.keys[t], embedded_gaps(embedding, history.gaps[t])])


def pooled_values(found: FoundAttention, q: Tensor, history: History, chosen: list[int], logits: Tensor) -> Tensor:
    """logits [n, A] of the chosen visits to the heads' outputs, the product with the target, the strengths."""
    if not chosen:
        return torch.zeros(found.output_dim)
    z = torch.stack([with_gaps(found.gap_embedding, history, t) for t in chosen])
    total = 1 + logits.exp().sum(dim=0)
    weights = logits.exp() / total
    product = q * (weights.mean(dim=1) @ history.keys[chosen])
    heads = (weights[:, a] @ (z @ found.value[a].t()) for a in range(logits.shape[1]))
    return torch.cat([*heads, product, total.log()])


def target_attention_by_hand(attention: TargetAttention, q: Tensor, history: History, chosen: list[int]) -> Tensor:
    """softmax((W_b z) . (W_a q)) of each head, over visits and none."""
    logits = [
        torch.stack(
            [
                (w_b @ with_gaps(attention.found.gap_embedding, history, t)) @ (w_a @ q)
                for w_a, w_b in zip(attention.from_query, attention.from_visit, strict=True)
            ]
        )
        for t in chosen
    ]
    return pooled_values(attention.found, q, history, chosen, torch.stack(logits) if logits else torch.empty(0, 1))


def most_recent(rows: list[int]) -> list[int]:
    return rows[-K:]


@pytest.mark.parametrize("seed", range(3))
def test_hard_search_equals_the_paper_by_hand(seed: int) -> None:
    torch.manual_seed(seed)
    tower = SIM(D, G, top_k=K, heads=2)
    query, history, context = make(LENGTHS, seed)
    rows = []
    for b in range(len(LENGTHS)):
        category = int(context.category[b])
        same = [t for t in visits(history, b) if int(context.visit_category[t]) == category and category != 0]
        rows.append(target_attention_by_hand(tower.attention, query[b], history, most_recent(same)))
    torch.testing.assert_close(tower(query, history, context), torch.stack(rows))


def test_hard_search_finds_nothing_for_an_unknown_category() -> None:
    query, history, context = make([5, 5])
    unknown = context._replace(category=torch.tensor([0, 7]), visit_category=torch.zeros(10, dtype=torch.int64))
    assert not SIM(D, G)(query, history, unknown).any()


def test_hard_search_without_context_is_told() -> None:
    query, history, _ = make([5, 5])
    with pytest.raises(ValueError, match="got no context; it needs the categories"):
        SIM(D, G)(query, history)


@pytest.mark.parametrize("seed", range(3))
def test_soft_search_equals_the_paper_by_hand(seed: int) -> None:
    torch.manual_seed(seed)
    tower = SoftSIM(D, G, top_k=K, heads=2).requires_grad_(False)
    query, history, _ = make(LENGTHS, seed)
    rows = []
    for b in range(len(LENGTHS)):
        r = {
            t: float((tower.from_visit.weight @ history.keys[t]) @ (tower.from_query.weight @ query[b])) / sqrt(D)
            for t in visits(history, b)
        }
        chosen = sorted(sorted(r, key=lambda t: -r[t])[:K])
        whole = sum((r[t] * history.keys[t] for t in r), torch.zeros(D)) / max(len(r), 1)
        rows.append(torch.cat([target_attention_by_hand(tower.attention, query[b], history, chosen), whole]))
    torch.testing.assert_close(tower(query, history), torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_the_soft_search_learns_though_its_choice_has_no_gradient() -> None:
    tower = SoftSIM(D, G, top_k=K)
    query, history, _ = make(LENGTHS)
    tower(query, history)[:, -D:].square().sum().backward()
    for layer in (tower.from_query, tower.from_visit):
        assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_gradients_reach_what_was_found_alone() -> None:
    tower = SIM(D, G, top_k=K)
    query, history, context = make(LENGTHS)
    history.keys.requires_grad_()
    tower(query, history, context).square().sum().backward()
    assert history.keys.grad is not None
    for b in range(len(LENGTHS)):
        category = int(context.category[b])
        same = [t for t in visits(history, b) if int(context.visit_category[t]) == category and category != 0]
        touched = [t for t in visits(history, b) if history.keys.grad[t].any()]
        assert touched == most_recent(same)


def test_gap_embedding_is_its_table_at_the_knots_and_constant_beyond() -> None:
    assert GapEmbedding(G).weight.shape == (G, KNOTS, GAP_DIM)
    tower = SoftSIM(D, G)
    query, history, _ = make([6])
    beyond = history._replace(gaps=torch.full((6, G), KNOTS - 1.0))
    far = history._replace(gaps=torch.full((6, G), KNOTS + 5.0))
    torch.testing.assert_close(tower(query, beyond), tower(query, far))
    assert not torch.allclose(tower(query, beyond), tower(query, history))


def test_an_exported_hard_search_reads_categories_and_not_hours(tmp_path: Path) -> None:
    features = Features((Table("item", 9, D, ("item",)),), (Table("user", 9, 4, ("user",)),), (), context=True)
    scorer = Scorer(features, RankerConfig(tower="placerank.rankers.towers.sim:SIM")).eval()
    export_scorer(scorer, features, tmp_path / "scorer.pt2")
    program = torch.export.load(tmp_path / "scorer.pt2").module()
    for lengths in ([], [0], [1], [0, 0], LENGTHS, [150, 3]):
        query, history, context = make(lengths)
        items, target = torch.cat([query, history.keys]), torch.arange(len(query))
        visits = torch.arange(len(query), len(items))
        inputs = items, target, visits, *history[1:3], torch.randn(len(lengths), 4), torch.zeros(len(lengths), 0)
        torch.testing.assert_close(program(*inputs, tuple(context)), scorer(*inputs, context))
