"""Exported dense parts: the scorer's numbers, and no device written into them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from tower_cases import make_context

from placerank.data.batches.activity import ACTIVITY_DIM
from placerank.data.batches.features import HISTORY_GAPS, FeatureConfig, Features, build_features
from placerank.rankers.dense import RankerConfig, Scorer
from placerank.rankers.exported import _name_no_device, export_scorer, load_features, save_features
from placerank.rankers.objectives import ObjectivesConfig
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import RestConfig
from placerank.rankers.towers.tower import TOWERS

ITEMS = 4
PLUGINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rest-akt": {"rest": RestConfig(enabled=True, warm_up=True), "akt": AktConfig(enabled=True, users=True)},
    "views": {
        "rest": RestConfig(enabled=True, warm_up=True),
        "akt": AktConfig(enabled=True, users=True, views=True, view_visits=2),
    },
}
# A program is traced for ten seconds, so what comes before a tower and after it is asked by few of them:
# - all plug-ins by each tower that reads what they bring (a view gives its tower what the tower gets without views);
# - no plug-ins by the others, and by one that reads places and hours; plug-ins without views by the default tower;
# - each kind of heads by one of those without plug-ins.
VIEWS = ("twin", "basm", "sim", "trisan")
HEADS = {"din": "shared", "hstu": "mmoe", "eta": "ple"}
CASES = [(tower, "plain", HEADS.get(tower)) for tower in sorted(TOWERS) if tower not in VIEWS or tower == "trisan"]
CASES += [("twin", "rest-akt", None), *((tower, "views", None) for tower in VIEWS)]


def make_scorer(tower: str, plugins: str, heads: str | None) -> tuple[Scorer, Features]:
    of_three: dict[str, Any] = {}
    if heads:
        objectives = ObjectivesConfig(labels=["label", "order", "gmv"], heads=heads, esmm=True)
        of_three = {"mlp": [8, 6, 4], "objectives": objectives}
    config = RankerConfig(**({"tower": tower, "mlp": [8]} | PLUGINS[plugins] | of_three))
    tables = {"item": 50, "user": 50, "category": 9, "brand": 9}
    ids = dict.fromkeys(("semantic_1", "semantic_2", "cluster", "user_cluster"), 9) if config.uses_traits else {}
    small = FeatureConfig(embedding_dim=8)
    features = build_features(small, tables, [], context=config.uses_context, traits=config.uses_traits, semantic=ids)
    if heads:
        features = replace(features, objectives=("label", "order", "gmv"), amount="gmv")
    scorer = Scorer(features, config).eval()
    if heads:
        assert scorer.heads is not None
        scorer.heads.unit.fill_(17.0)
    return scorer, features


def make_inputs(features: Features, lengths: list[int]) -> tuple[Any, ...]:
    """What a program takes, as ``rankers/exported.py`` says."""
    B, T = len(lengths), sum(lengths)
    g = torch.Generator().manual_seed(T)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    rows = [torch.randint(0, ITEMS, (n,), generator=g) for n in (B, T)]
    inputs: tuple[Any, ...] = some(ITEMS, features.query_dim), *rows, torch.tensor([0, *lengths]).cumsum(0)
    inputs += some(T, HISTORY_GAPS), some(B, features.pooled_dim), some(B, features.dense_dim)
    if features.context:
        inputs += (tuple(make_context(B, T)),)
    if features.traits:
        attributes = torch.randint(0, 9, (ITEMS, len(features.attributes)), generator=g)
        inputs += () if features.context else (None,)
        inputs += ((attributes, some(ITEMS, ACTIVITY_DIM), some(B, ACTIVITY_DIM)),)
    return inputs


def nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """Of the program and of the loops in it."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes]


def devices(program: ExportedProgram) -> list[str]:
    """Operations that name a device."""
    return [str(node.target) for node in nodes(program) if node.kwargs.get("device") is not None]


class AllTrue(TorchDispatchMode):
    """Shapes alone don't say how many numbers are not 0: all are."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


def run_elsewhere(program: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """A loaded program on shapes alone, with weights and inputs on a second GPU: a tensor made elsewhere is refused."""

    def there(x: Any) -> Any:
        return torch.empty(x.shape, dtype=x.dtype, device="cuda:1") if isinstance(x, Tensor) else x

    with FakeTensorMode(shape_env=ShapeEnv()), AllTrue(), torch.no_grad():
        weights = {name: there(x) for name, x in [*program.named_parameters(), *program.named_buffers()]}
        out: Tensor = torch.func.functional_call(program, weights, tree_map(there, inputs))
    return out


@pytest.mark.parametrize(("tower", "plugins", "heads"), CASES)
def test_programs_give_the_scorers_logits_and_run_on_any_device(
    tower: str, plugins: str, heads: str | None, tmp_path: Path
) -> None:
    (scorer, features), file = make_scorer(tower, plugins, heads), tmp_path / "scorer.pt2"
    export_scorer(scorer, features, file)
    program = torch.export.load(file)
    targets = [str(node.target) for node in nodes(program)]
    assert not [target for target in targets if "placerank" in target], "the file must load without placerank"
    assert devices(program) == []
    loaded = program.module()
    for lengths in ([3, 0, 1], [0], [1], [0, 0], [], [40, *[2] * 9]):
        inputs = make_inputs(features, lengths)
        with torch.no_grad():
            want = scorer(*inputs)
            torch.testing.assert_close(loaded(*inputs), want, rtol=1e-4, atol=1e-5)
        assert want.shape == ((len(lengths), 3) if heads else (len(lengths),)), "a column for each objective"
    out = run_elsewhere(loaded, make_inputs(features, [3, 0, 1]))
    assert out.device == torch.device("cuda:1") and out.shape == ((3, 3) if heads else (3,))
    save_features(features, tmp_path / "features.json")
    assert load_features(tmp_path / "features.json") == features


class Maker(nn.Module):
    """Makes tensors in each way that towers may."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        made = torch.zeros(n, device=x.device) + torch.ones(n, device=x.device) + torch.full((n,), 2.5, device=x.device)
        made = made + torch.empty(n, device=x.device).fill_(3.0) + torch.arange(n, device=x.device)
        return x + made + torch.arange(n, device=x.device, dtype=torch.float32)


def test_what_is_made_is_made_where_the_inputs_are() -> None:
    program = torch.export.export(Maker(), (torch.rand(5),), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert len(devices(program)) == 6
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:1 and cpu"):
        run_elsewhere(program.module(), (torch.rand(7),))
    _name_no_device(program.graph_module)
    assert devices(program) == []
    x = torch.rand(7)
    assert torch.equal(program.module()(x), Maker()(x))
    assert run_elsewhere(program.module(), (x,)).device == torch.device("cuda:1")


def test_what_stays_on_its_device_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3, device=x.device)

    program = torch.export.export(Draws(), (torch.rand(3),))
    with caplog.at_level(logging.WARNING):
        _name_no_device(program.graph_module)
    assert "scorer.pt2 runs on cpu alone: it has aten.rand.default there" in caplog.text
    assert devices(program) == ["aten.rand.default"]
