"""What rankers start on a GPU: every tower, in every width that the features' config gives it, and ReST's contrast.

The dense part takes a step on the CPU, in which each kernel's arguments go to the GPU's launcher in place of the CPU's
path. Numbers don't matter, so loops of these widths, which nothing else has, needn't be compiled for the CPU as well.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from placerank.data.batches.activity import ACTIVITY_DIM
from placerank.data.batches.dense_batch import Context, Traits
from placerank.data.batches.features import HISTORY_GAPS, FeatureConfig, build_features
from placerank.kernels import codebook_cpu, codebook_triton, gru, hard_negatives, search_attention, target_attention
from placerank.kernels import hard_negatives_triton as for_negatives
from placerank.kernels import search_attention_triton as for_search
from placerank.kernels import target_attention_triton as for_target
from placerank.kernels.haversine import unit_vectors
from placerank.kernels.variants import BIG, Variants
from placerank.rankers.dense import RankerConfig, Scorer
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import ContrastItems, RestConfig, SpatialContrast
from placerank.rankers.towers.tower import TOWERS, Samples

ITEMS, SAMPLES, VISITS = 40, 23, 211
Path = Callable[..., Any]


def _on_meta(visits: int, x: Any) -> Any:
    """A tensor without its numbers; of the visits, so many of them."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty((visits, *x.shape[1:]) if x.shape[:1] == (VISITS,) else x.shape, dtype=x.dtype, device="meta")


def _shown(launch: Path, of_sharing: int, *arguments: Any) -> Any:
    """Zeros for what the launcher gives, which is shown the arguments with few visits and with more than fit in 2 GB.

    of_sharing: last arguments, which say where samples share keys; on a GPU those are laid out before.
    """
    own = arguments[: len(arguments) - of_sharing]
    assert all(x is None for x in arguments[len(own) :])
    launch(*tree_map(partial(_on_meta, BIG), own))
    given = launch(*tree_map(partial(_on_meta, VISITS), own))
    return tree_map(lambda x: torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x, given)


def _negatives(path: Path, search: Any) -> Any:
    """As ``_shown``, but which tiles are in reach is a matter of numbers."""
    for_negatives.hard_negatives_triton(search)
    return path(search)


# Where a CPU path is looked up by name, what GPUs have in its place, and how many arguments that one has not.
# The GRU has no kernel of ours there, and what it gives here is the width of its states.
PATHS: list[tuple[Any, str, Path, int]] = [
    (gru, "gru_cpu", lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[1]), 0),
    (gru, "gru_backward_cpu", lambda grad, *inputs: tuple(map(torch.empty_like, (*inputs[:3], inputs[4]))), 0),
    (target_attention, "target_attention_cpu", for_target.target_attention_triton, 1),
    (target_attention, "target_attention_backward_cpu", for_target.target_attention_backward_triton, 1),
    (search_attention, "search_attention_cpu", for_search.search_attention_triton, 1),
    (search_attention, "search_attention_backward_cpu", for_search.search_attention_backward_triton, 2),
    (codebook_cpu, "residual_encode_cpu", codebook_triton.residual_encode_triton, 0),
]


def _with_launches(step: Callable[[], None], dtype: torch.dtype) -> None:
    with ExitStack() as stack:
        for module, name, launch, of_sharing in PATHS:
            stack.enter_context(patch.object(module, name, partial(_shown, launch, of_sharing)))
        path = partial(_negatives, hard_negatives.hard_negatives_cpu)
        stack.enter_context(patch.object(hard_negatives, "hard_negatives_cpu", path))
        for module in (target_attention, search_attention):  # bfloat16 too, as on a GPU
            stack.enter_context(patch.object(module, "_compiled", lambda *_: True))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            step()


def _places(rows: int) -> Tensor:
    return unit_vectors(48 + 0.1 * torch.rand(rows), 10 + 0.1 * torch.rand(rows))


def _rows(high: int, count: int) -> Tensor:
    return torch.randint(0, high, (count,))


def _ranker(tower: str, attributes: list[str], views: bool) -> None:
    """A training step of the dense part; with views the first is in the width that semantic IDs alone give."""
    tables = {"item": 50, "user": 50, "category": 1, "brand": 1} | dict.fromkeys(attributes, 9)
    ids = dict.fromkeys(("semantic_1", "semantic_2", "cluster"), 9) if views else {}
    features = build_features(FeatureConfig(), tables, [], context=True, traits=True, semantic=ids)
    config = RankerConfig(tower=tower, akt=AktConfig(enabled=views, views=views))
    scorer = Scorer(features, config)
    lengths = torch.full((SAMPLES,), VISITS // SAMPLES)
    lengths[0] += VISITS - int(lengths.sum())
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    hours = _rows(168, SAMPLES), _places(SAMPLES), _places(SAMPLES), _rows(9, VISITS), _rows(168, VISITS)
    context = Context(_rows(9, SAMPLES), *hours, _places(VISITS))
    activity = torch.rand(ITEMS, ACTIVITY_DIM), torch.rand(SAMPLES, ACTIVITY_DIM)
    traits = Traits(torch.randint(0, 9, (ITEMS, len(attributes))), *activity)
    samples = Samples(_rows(ITEMS, SAMPLES), _rows(ITEMS, VISITS), offsets, torch.rand(VISITS, HISTORY_GAPS), context)
    rows = [torch.randn(ITEMS, t.dim, requires_grad=True) for t in features.sequence]
    encoded = scorer.encode(rows, torch.randn(SAMPLES, features.pooled_dim), traits)
    query = samples.query(encoded.items.vectors)
    interest, loss = scorer.interest(encoded.items, query, samples, traits, with_loss=True)
    (interest.float().sum() + (0 if loss is None else loss)).backward()


def _contrast() -> None:
    """ReST's loss, and a refresh of its centres."""
    dim, config = FeatureConfig().embedding_dim, RestConfig(enabled=True)
    contrast, known = SpatialContrast(dim, config), torch.randint(1, 9, (ITEMS, 2))
    attributes = torch.randn(ITEMS, 2, dim)
    contrast.refresh(attributes, known > 0)
    vectors = torch.randn(ITEMS, dim, requires_grad=True)
    contrast(ContrastItems(vectors, known, attributes, _places(ITEMS), torch.arange(ITEMS)))


def _cases() -> dict[str, Callable[[], None]]:
    steps: dict[str, Callable[[], None]] = {"rest": _contrast}
    for tower in TOWERS:
        for attributes in ([], ["category"], ["category", "brand"]):
            steps["_".join([tower, *attributes])] = partial(_ranker, tower, attributes, False)
        steps[f"{tower}_views"] = partial(_ranker, tower, ["category", "brand"], True)
    types = (("fp32", torch.float32), ("bf16", torch.bfloat16))
    return {f"{name}_{short}": partial(_with_launches, step, t) for name, step in steps.items() for short, t in types}


VARIANTS = Variants(_cases())
