"""BASM's layers against their equations, a sample at a time."""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu
from tower_cases import D, make_case, make_tower

from placerank.kernels.haversine import unit_vectors_km
from placerank.rankers.towers.basm import BASM, BiasLayer, FieldWeights, SemanticTransform
from placerank.rankers.towers.tower import Context, History


def make() -> BASM:
    tower = make_tower("basm").eval()
    assert isinstance(tower, BASM)
    for layer in tower.bias_tower:
        torch.nn.init.normal_(layer.gamma)
        torch.nn.init.normal_(layer.beta)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return tower


def fields_by_hand(layer: FieldWeights, fields: list[Tensor], c: Tensor) -> Tensor:
    gates = [
        2 * torch.sigmoid(g.weight[0] @ torch.cat([x, c]) + g.bias[0]) for g, x in zip(layer.gates, fields, strict=True)
    ]
    return torch.cat([g * x for g, x in zip(gates, fields, strict=True)])


def transform_by_hand(layer: SemanticTransform, x: Tensor, s: Tensor) -> Tensor:
    generated = layer.left.weight @ layer.core(s).view(layer.rank, layer.rank) @ layer.right.weight
    return (layer.plain.weight + generated) @ x + layer.bias(s)


def bias_layer_by_hand(layer: BiasLayer, x: Tensor, c: Tensor) -> Tensor:
    n, m = layer.shared.in_features, layer.shared.out_features
    scales = 2 * torch.sigmoid(layer.scales(c))
    fc_bias, shift = layer.shifts(c)[:m], layer.shifts(c)[m:]
    generated = torch.outer(scales[n : n + m], scales[:n])
    y = (layer.shared.weight * generated) @ x + fc_bias
    y = (y - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
    return leaky_relu(layer.gamma * scales[n + m :] * y + layer.beta + shift)


def suiting_by_hand(tower: BASM, history: History, context: Context, b: int) -> Tensor:
    found = []
    for t in range(int(history.offsets[b]), int(history.offsets[b + 1])):
        apart = abs(int(context.visit_hour[t]) % 24 - int(context.hour[b]) % 24)
        km = float(unit_vectors_km(context.visit_place[t], context.place[b]))
        if min(apart, 24 - apart) <= tower.within_hours and (km != km or km <= tower.reach_km):
            found.append(history.keys[t])
    return torch.stack(found).mean(dim=0) if found else torch.zeros(D)


def test_basm_equals_its_equations_by_hand() -> None:
    tower = make()
    query, history, context = make_case([12, 0, 30, 1])
    interest = tower.attention.attend(query, history)
    rows = []
    for b in range(4):
        cells = tower.cells.table.weight[tower.cells.cells(context.place[b : b + 1])[0]].flatten()
        c = torch.cat([tower.hours.table.weight[context.hour[b]], cells])
        suiting = suiting_by_hand(tower, history, context, b)
        x = fields_by_hand(tower.fields, [query[b], interest[b], suiting], c)
        x = transform_by_hand(tower.transform, x, torch.cat([c, suiting]))
        for layer in tower.bias_tower:
            x = bias_layer_by_hand(layer, x, c)
        rows.append(x)
    torch.testing.assert_close(tower(query, history, context), torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_suiting_visits_are_those_near_in_hour_and_place() -> None:
    tower = make()
    _, history, context = make_case([40, 3, 0, 25], seed=3)
    got = tower.suiting_visits(history, context)
    for b in range(4):
        torch.testing.assert_close(got[b], suiting_by_hand(tower, history, context, b), rtol=1e-4, atol=1e-5)
    assert got[0].any() and not torch.allclose(got[0], history.keys[:40].mean(dim=0)), "some visits suit, not all"


def test_batch_statistics_in_training_and_running_ones_for_a_single_sample() -> None:
    layer = BiasLayer(3, 5, 2).train()
    x, c = torch.randn(64, 3), torch.randn(64, 2)
    layer(x, c)
    moved = layer.running_mean.clone()
    assert moved.any()
    single = layer(x[:1], c[:1])
    torch.testing.assert_close(layer.running_mean, moved)
    torch.testing.assert_close(single, layer.eval()(x[:1], c[:1]))
