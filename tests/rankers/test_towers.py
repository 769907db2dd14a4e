"""What every tower must do, whatever it is."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tower_cases import D, G, make_case, make_context, make_tower, select
from toy_ranker import BATCH, FEATURES, OPTIMIZER, fill, local_pieces, make_batch, put_together

from placerank.data.batches.batch import RankingBatch
from placerank.rankers.dense import RankerConfig, Scorer
from placerank.rankers.ranker import Ranker
from placerank.rankers.towers.dien import DIEN
from placerank.rankers.towers.din import DIN
from placerank.rankers.towers.sim import SIM
from placerank.rankers.towers.tower import TOWERS, History, find_tower, register_tower, with_options
from placerank.training.model import assemble
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig

NAMES = sorted(TOWERS)
IN_ORDER = {"dien", "hstu"}
"""Towers for which the order of the visits matters."""
NOT_OF_HISTORY_ALONE = {"basm", "hstu"}
"""Towers that give something other than zeros for an empty history."""
WITH_CONTEXT = [name for name in NAMES if find_tower(name).uses_context]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), extra=st.integers(0, 5), seed=st.integers(0, 99))
def test_padded_equals_jagged(name: str, lengths: list[int], extra: int, seed: int) -> None:
    tower = make_tower(name).eval()
    query, history, context = make_case(lengths, seed)
    width = max(lengths) + extra
    mask = torch.rand(len(lengths), width, generator=torch.Generator().manual_seed(seed)).argsort(1) < torch.tensor(
        lengths
    ).unsqueeze(1)
    padded, gaps = torch.full((len(lengths), width, D), torch.nan), torch.full((len(lengths), width, G), torch.nan)
    padded[mask], gaps[mask] = history.keys, history.gaps
    out = tower(query, History.from_padded(padded, mask, gaps), context)
    torch.testing.assert_close(out, tower(query, history, context))
    assert out.shape == (len(lengths), tower.output_dim) and out.isfinite().all()
    if name not in NOT_OF_HISTORY_ALONE:
        assert not out[torch.tensor(lengths) == 0].any(), "an empty history gives zeros"


@pytest.mark.parametrize("name", NAMES)
def test_no_samples_and_no_visits(name: str) -> None:
    tower = make_tower(name)
    for mode in (True, False):
        tower.train(mode)
        assert tower(*make_case([])).shape == (0, tower.output_dim)
        assert tower(*make_case([0])).isfinite().all()
        assert tower(*make_case([1])).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_order_of_visits(name: str) -> None:
    tower = make_tower(name).eval()
    lengths = [5, 0, 4]
    case = make_case(lengths)
    shuffled = select(case, torch.tensor([4, 2, 0, 1, 3, 8, 6, 7, 5]), torch.arange(3), lengths)
    a, b = tower(*case), tower(*shuffled)
    if name in IN_ORDER:
        assert not torch.allclose(a[0], b[0], atol=1e-4)
    else:
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_other_samples_do_not_matter(name: str) -> None:
    tower = make_tower(name).eval()
    case = make_case([4, 0, 9])
    alone = select(case, torch.arange(4, 13), torch.tensor([2]), [9])
    torch.testing.assert_close(tower(*alone)[0], tower(*case)[2])


@pytest.mark.parametrize("name", NAMES)
def test_history_query_and_context_matter(name: str) -> None:
    tower = make_tower(name).eval()
    query, history, context = make_case([4, 6])
    out = tower(query, history, context)
    assert not torch.allclose(out, tower(query, history._replace(keys=history.keys.flip(1)), context), atol=1e-3)
    assert not torch.allclose(out, tower(query.flip(1), history, context), atol=1e-3)
    if tower.uses_context:
        assert not torch.allclose(out, tower(query, history, make_context(2, 10, seed=9)), atol=1e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if find_tower(n).shares_keys])  # type: ignore[attr-defined]
@pytest.mark.parametrize("top_k", [None, 3])
def test_keys_once_a_request_give_what_keys_of_each_candidate_give(name: str, top_k: int | None) -> None:
    """Interest, and gradients of query and keys."""
    lengths, candidates = [4, 0, 9, 1], [3, 1, 2, 5]
    of = [r for r, n in enumerate(candidates) for _ in range(n)]
    tower = make_tower(name)
    if top_k and hasattr(tower, "top_k"):
        tower.top_k = top_k
    query, history, context = make_case([lengths[r] for r in of])
    starts = torch.tensor([sum(lengths[:r]) for r in of])
    rows = torch.tensor([sum(lengths[:r]) + i for r in of for i in range(lengths[r])])
    keys = torch.randn(sum(lengths), D).requires_grad_()
    query.requires_grad_()
    history.gaps[:, 0] = torch.rand(sum(lengths))[rows]  # hours are the request's, km the candidate's
    for training in (True, False):
        tower.train(training)
        want = copy.deepcopy(tower)(query, history._replace(keys=keys[rows]), context)
        got = copy.deepcopy(tower)(query, history._replace(keys=keys, starts=starts), context)
        torch.testing.assert_close(got, want)
        grad = torch.randn_like(want)
        for a, b in zip(
            torch.autograd.grad(got, (query, keys), grad), torch.autograd.grad(want, (query, keys), grad), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_CONTEXT)
def test_a_missing_context_is_told(name: str) -> None:
    query, history, _ = make_case([2])
    with pytest.raises(ValueError, match="got no context; it needs the"):
        make_tower(name)(query, history)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [[3, 1], [0, 2], [1], [0, 0], []])
def test_every_parameter_gets_a_finite_gradient_in_training(name: str, lengths: list[int]) -> None:
    tower = make_tower(name).train()
    query, history, context = make_case(lengths)
    history.keys.requires_grad_()
    interest, loss = tower.forward_with_loss(query, history, context)
    (interest.square().sum() + (0 if loss is None else loss)).backward()
    for parameter in [history.keys, *tower.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    tower = make_tower(name).double().eval()
    query, history, context = make_case([3, 0, 2])
    inputs = query.double().requires_grad_(), history.keys.double().requires_grad_()

    def interest(query: Tensor, keys: Tensor) -> Tensor:
        return tower(query, History(keys, history.offsets, history.gaps.double()), context)

    assert torch.autograd.gradcheck(interest, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    tower = make_tower(name).eval()
    query, history, context = make_case([4, 0, 9])
    exact = tower(query, history, context).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tower(query, history, context)
    low_history = History(history.keys.bfloat16(), history.offsets, history.gaps.bfloat16())
    low = tower.bfloat16()(query.bfloat16(), low_history, context)
    assert low.dtype == torch.bfloat16
    for out in (mixed, low):
        torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.05 * float(exact.abs().max()))


def batch_for(config: RankerConfig, rank: int) -> RankingBatch:
    batch = make_batch(rank)
    visits = batch.dense.history_gaps.shape[0]
    torch.manual_seed(rank)  # what a tower draws in training
    context = make_context(BATCH, visits) if config.uses_context else None
    return replace(batch, dense=replace(batch.dense, context=context))


def initial_ranker(config: RankerConfig) -> Ranker:
    torch.manual_seed(7)
    return Ranker(FEATURES, config, device="cpu")


def loss_of(model: Any, batch: RankingBatch) -> tuple[Tensor, Tensor]:
    scores = model(batch)
    loss = binary_cross_entropy_with_logits(scores.logits, batch.label) + sum(scores.losses.values())
    return scores.logits.detach(), loss


def gradients(scorer: torch.nn.Module) -> dict[str, Tensor]:
    """Of the dense part: what the optimizer makes of them is no tower's, and AdamW's first step, which has the size of
    the learning rate whatever the gradient, would show rounding alone where there is next to none."""
    return {name: p.grad for name, p in scorer.named_parameters() if p.grad is not None}


def step_sharded(names: list[str]) -> dict[str, tuple[Tensor, dict[str, Tensor], dict[str, Any]]]:
    results = {}
    with runtime(0) as rt:
        for name in names:
            config = RankerConfig(tower=name, mlp=[8])
            trainee = assemble(FEATURES, config, ShardingConfig(default="row_wise"), OPTIMIZER, rt, BATCH, 2.0)
            fill(trainee.model, initial_ranker(config).state_dict())
            logits, loss = loss_of(trainee.model, batch_for(config, rt.rank))
            loss.backward()  # the tables' optimizer is part of it
            tables = trainee.model.module.embeddings.state_dict()
            results[name] = logits, gradients(trainee.model.module.dense.scorer), local_pieces(tables)
    return results


def step_unsharded(name: str, world_size: int) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The same step in plain PyTorch, row-wise Adagrad by hand."""
    config = RankerConfig(tower=name, mlp=[8])
    ranker = initial_ranker(config)
    outputs = []
    for rank in range(world_size):
        logits, loss = loss_of(ranker, batch_for(config, rank))
        outputs.append(logits)
        (loss / world_size).backward()
    tables = {}
    for table, p in ranker.embeddings.named_parameters():
        assert p.grad is not None
        rms = p.grad.square().mean(dim=1).sqrt()
        tables[table] = p.detach() - OPTIMIZER.table_lr * p.grad / (rms + 1e-8)[:, None]
    return outputs, gradients(ranker.dense.scorer), tables


def test_sharded_equals_unsharded(ranks: Callable[..., list[Any]]) -> None:
    results = ranks(2, step_sharded, NAMES, timeout=300)
    for name in NAMES:
        outputs, grads, tables = step_unsharded(name, 2)
        for output, result in zip(outputs, results, strict=True):
            logits, sharded_grads, _ = result[name]
            torch.testing.assert_close(logits, output, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            assert sharded_grads.keys() == grads.keys()
            for key, grad in grads.items():
                torch.testing.assert_close(
                    sharded_grads[key], grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=f"{name} {key}": f"{n}: {m}"
                )
        sharded = put_together([result[name][2] for result in results])
        assert sharded.keys() == tables.keys()
        for key, table in tables.items():
            torch.testing.assert_close(
                sharded[key], table, rtol=0, atol=1e-6, msg=lambda m, n=f"{name} {key}": f"{n}: {m}"
            )


def test_a_tower_that_does_not_exist_is_told() -> None:
    known = ", ".join(NAMES)
    with pytest.raises(ValueError, match=rf"tower 'dinn' does not exist; there are {known}, or package.module:Class"):
        find_tower("dinn")
    with pytest.raises(ValueError, match=r"tower 'placerank.rankers.towers.din:DNI': .*expected package.module:Class"):
        find_tower("placerank.rankers.towers.din:DNI")
    with pytest.raises(ValueError, match="tower 'din' is already registered"):
        register_tower("din", DIN)


def test_a_tower_of_ones_own_by_its_path() -> None:
    assert isinstance(find_tower("placerank.rankers.towers.din:DIN")(D, G), DIN)


def test_options_change_a_tower() -> None:
    features = replace(FEATURES, context=True)
    scorer = Scorer(features, RankerConfig(tower="sim", tower_options={"top_k": 3.0, "heads": 2}))
    assert isinstance(scorer.tower, SIM) and scorer.tower.top_k == 3 and len(scorer.tower.attention.from_query) == 2
    dien = with_options("dien", {"auxiliary_weight": 0.5})(D, G)
    assert isinstance(dien, DIEN) and dien.auxiliary_weight == 0.5
    assert with_options("twin", {})(D, G).output_dim == find_tower("twin")(D, G).output_dim


def test_an_option_that_does_not_fit_is_told() -> None:
    for name, options, message in [
        ("eta", {"topk": 5}, r"tower 'eta' has no option 'topk'; it has top_k \(100\), heads \(4\), bits \(64\)"),
        ("din", {"heads": 2}, "tower 'din' has no option 'heads'; it has none"),
        ("twin", {"top_k": 0}, "ranker.tower_options top_k=0: tower 'twin' expects a whole number, at least 1"),
        ("twin", {"heads": 1.5}, "heads=1.5: tower 'twin' expects a whole number"),
        ("dien", {"auxiliary_weight": -1}, "auxiliary_weight=-1: tower 'dien' expects 0 or more"),
        ("basm", {"reach_km": float("nan")}, "ranker.tower_options reach_km=nan: expected a finite number"),
    ]:
        with pytest.raises(ValueError, match=message):
            Scorer(replace(FEATURES, context=True), RankerConfig(tower=name, tower_options=options))
