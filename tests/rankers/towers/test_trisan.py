"""TRISAN against its docstring's equations, a sample and a visit at a time."""

import pytest
import torch
from torch import Tensor
from tower_cases import make_case, make_tower

from placerank.kernels.haversine import unit_vectors_km
from placerank.rankers.towers.tower import Context, History
from placerank.rankers.towers.trisan import TRISAN, Closeness


def make() -> TRISAN:
    tower = make_tower("trisan").eval()
    assert isinstance(tower, TRISAN)
    return tower


def closeness_by_hand(tower: TRISAN, fuse: Closeness, visit: Tensor, place: Tensor, times: Tensor) -> Tensor:
    known = not (visit.isnan().any() or place.isnan().any())
    km = torch.log1p(unit_vectors_km(visit, place)) if known else torch.tensor(0.0)
    here, there = (tower.cells.table.weight[tower.cells.cells(x[None])[0]] for x in (visit, place))
    similarity = (here * there).sum(dim=1) if known else torch.zeros(len(tower.cells.sizes_km))
    space = fuse.of_space.weight @ torch.cat([km[None], torch.tensor([float(known)]), similarity]) + fuse.of_space.bias
    return space * torch.sigmoid(fuse.of_time.weight @ times + fuse.of_time.bias)


def trisan_by_hand(tower: TRISAN, query: Tensor, history: History, context: Context) -> Tensor:
    rows = []
    for b in range(query.shape[0]):
        visits = list(range(int(history.offsets[b]), int(history.offsets[b + 1])))
        sides = []
        for t in visits:
            e = tower.hours.table.weight
            times = torch.cat([history.gaps[t, :1], e[context.visit_hour[t]] * e[context.hour[b]]])
            at = context.visit_place[t]
            item = closeness_by_hand(tower, tower.to_item, at, context.target_place[b], times)
            request = closeness_by_hand(tower, tower.to_request, at, context.place[b], times)
            sides.append(torch.cat([history.gaps[t], item, request]))
        if not visits:
            rows.append(torch.zeros(tower.output_dim))
            continue
        own = History(history.keys[visits], torch.tensor([0, len(visits)]), torch.stack(sides))
        rows.append(tower.attention(query[b : b + 1], own)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("lengths", [[3, 1, 4], [0, 2, 0], [17, 0, 5, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_trisan_equals_its_equations_by_hand(lengths: list[int], seed: int) -> None:
    tower, case = make(), make_case(lengths, seed)
    torch.testing.assert_close(tower(*case), trisan_by_hand(tower, *case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["place", "target_place", "hour"])
def test_each_side_reaches_its_own_closeness(side: str) -> None:
    tower = make()
    query, history, context = make_case([6, 3])
    other = make_case([6, 3], seed=5)[2]
    changed = context._replace(**{side: getattr(other, side)})
    before, after = tower.closeness(history, context).chunk(2, 1), tower.closeness(history, changed).chunk(2, 1)
    differs = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == {"target_place": [True, False], "place": [False, True], "hour": [True, True]}[side]
    assert not torch.allclose(tower(query, history, context), tower(query, history, changed))
