"""G-DPO: losses by hand; parts, ranks and restarts change nothing; and it does what it is for."""

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from towns import town_encoder, towns

from placerank.tokenization.alignment import finetune as finetune_module
from placerank.tokenization.alignment.finetune import OptimizerSettings, schedule
from placerank.tokenization.alignment.gdpo import (
    LADDER,
    GDPOConfig,
    align_policy,
    alignment_loss,
    contrast_weights,
    pair_counts,
    similarity_loss,
)
from placerank.tokenization.alignment.lora import LoraSettings, add_adapter
from placerank.tokenization.alignment.pairs import PreferencePairs, collaborative_pairs, geographic_pairs
from placerank.tokenization.alignment.reward import RewardConfig, RewardModel, train_reward
from placerank.tokenization.ranks import joined

FAST = OptimizerSettings(learning_rate=3e-3, checkpoint_every=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and a reward model trained on it."""
    folder = tmp_path_factory.mktemp("world")
    prompts, places = towns()
    encoder = town_encoder(folder / "model")
    config = RewardConfig(epochs=30, hidden=32, learning_rate=3e-3)
    train_reward(encoder, prompts, places, config, folder / "reward", {}, seed=0)
    return folder


def pairs_of(count: int) -> PreferencePairs:
    _, places = towns()
    rng = np.random.default_rng(5)
    a = rng.integers(0, 240, count)
    b = rng.integers(0, 240, count)
    together = collaborative_pairs(a[a != b], b[a != b], places, count // 3, rng)
    return PreferencePairs.join(geographic_pairs(places, count - len(together), rng), together)


def run(world: str, folder: str, changes: dict[str, Any], dropout: float = 0.05, die_at: int = 0) -> dict[str, Any]:
    """Align the world's encoder; the adapter's weights and the log. ``die_at``: killed before that step."""
    torch.set_num_threads(1)
    prompts, places = towns()
    encoder = town_encoder(Path(world) / "model")
    parameters = add_adapter(encoder, LoraSettings(dropout=dropout))
    reward = RewardModel.load(Path(world) / "reward/reward.safetensors")
    config = GDPOConfig(**({"batch_pairs": 12, "pairs": 96, "optimizer": FAST} | changes))
    if die_at:
        original = finetune_module.schedule

        def schedule_or_die(step: int, steps: int, warmup: float) -> float:
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(step, steps, warmup)

        finetune_module.schedule = schedule_or_die
    with joined() as at:
        log = align_policy(
            encoder, parameters, reward, prompts, places, pairs_of(config.pairs), config, Path(folder), {}, seed=1
        )
    weights = [p.detach().clone() for p in parameters]
    return {"weights": weights, "log": log, "vectors": encoder.encode(prompts.texts()), "world": at.world}


def test_losses_by_hand() -> None:
    reward, reference = torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 0.8]])
    by_hand = -np.log(1 / (1 + np.exp(-0.9 * (1.5 - 0.2))))
    assert alignment_loss(reward, reference, 0.9).tolist() == pytest.approx([by_hand])
    policy = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    frozen = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 5.0]])  # the second and third read the same
    others = torch.tensor([[0, 0.5, 0.5], [1.0, 0, 0]])
    got = similarity_loss(policy, frozen, torch.tensor([0, 1]), others)
    first = (0.4**2 + 0.8**2) - (0.6**2 + 0.2**2)  # unit vectors (.6, .8) to (1, 0), and to (0, 1) twice
    assert got.tolist() == pytest.approx([first, 0 - 2.0])
    centre = torch.tensor([0.5, -0.5])
    moved = similarity_loss(policy, frozen, torch.tensor([0, 1]), others, centre)
    unit = [(np.array(v) / np.linalg.norm(v) - [0.5, -0.5]) for v in ((3, 4), (1, 0), (0, 1))]
    p, own, other = (v / np.linalg.norm(v) for v in unit)
    assert moved[0].item() == pytest.approx(((p - own) ** 2).sum() - ((p - other) ** 2).sum(), rel=1e-5)
    scaled = similarity_loss(7 * policy, 0.1 * frozen, torch.tensor([0, 1]), others)
    torch.testing.assert_close(scaled, got)  # lengths have no part


def test_reference_is_the_minimum_only_when_centred() -> None:
    """Vectors with a large common part, as language models make them."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator) + 2, dim=-1)
    at, others = torch.arange(200), (1 - torch.eye(200)) / 199
    cosine = {}
    for name, centre in (("printed", None), ("centred", reference.mean(0))):
        policy = reference.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([policy], lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            similarity_loss(policy, reference, at, others, centre).mean().backward()
            optimizer.step()
        cosine[name] = torch.nn.functional.cosine_similarity(policy.detach(), reference).mean().item()
    assert cosine["printed"] < 0.6 and cosine["centred"] > 0.99


def test_contrast_weights_by_hand() -> None:
    """Two contents at two places each, the first prompt twice; then a batch of a single pair."""
    number, content = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 0, 0, 1, 1])
    same, kin = (x[:, None] == x for x in (number, content))
    printed = contrast_weights(same, kin, None)
    assert printed[0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert printed[2].tolist() == [0.25, 0.25, 0, 0.25, 0.25]
    mixed = contrast_weights(same, kin, 0.6)
    assert mixed[0].tolist() == pytest.approx([0, 0, 0.6, 0.2, 0.2])
    assert mixed[3].tolist() == pytest.approx([0.4 / 3, 0.4 / 3, 0.4 / 3, 0, 0.6])
    one_pair = torch.eye(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    for share in (0.0, 0.3, 1.0):
        assert contrast_weights(same, kin, share).sum(1).tolist() == pytest.approx([1] * 5)
    assert contrast_weights(*one_pair, None).tolist() == [[0, 1], [1, 0]]
    assert contrast_weights(*one_pair, 0.25).tolist() == [[0, 0.25], [0.25, 0]]  # nobody else is there


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_contrast_with_the_same_content_elsewhere_makes_places_weigh_more(share: float) -> None:
    """Vectors that are content plus place: at the minimum contents have lost the share, places nothing."""
    generator = torch.Generator().manual_seed(0)
    contents, places = torch.randn(40, 32, generator=generator), torch.randn(20, 32, generator=generator)
    contents, places = contents - contents.mean(0), places - places.mean(0)
    content, place = (x.flatten() for x in torch.meshgrid(torch.arange(40), torch.arange(20), indexing="ij"))
    # Blocks that are orthogonal, so that all vectors are about equally long.
    vectors = torch.cat([torch.nn.functional.normalize(x, dim=1) for x in (contents, places)], dim=0)
    reference = torch.cat([vectors[:40][content], vectors[40:][place]], dim=1)
    policy = reference.clone().requires_grad_(True)
    same, kin = torch.eye(800, dtype=torch.bool), content[:, None] == content
    others = contrast_weights(same, kin, share)
    optimizer = torch.optim.Adam([policy], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        similarity_loss(policy, reference, torch.arange(800), others).mean().backward()
        optimizer.step()
    found = torch.nn.functional.normalize(policy.detach(), dim=1)
    ratio = found[:, :32].norm(dim=1) / found[:, 32:].norm(dim=1)
    assert ratio.mean().item() == pytest.approx(1 - share, abs=0.08)
    kept = torch.nn.functional.cosine_similarity(found[:, 32:], reference[:, 32:], dim=1)
    assert kept.mean().item() > 0.98  # a place still means the same


def test_parts_give_the_gradient_of_the_whole(world: Path, tmp_path: Path) -> None:
    whole, parts = (
        run(str(world), str(tmp_path / str(n)), {"part_pairs": n, "pairs": 24}, dropout=0.0) for n in (12, 5)
    )
    for a, b in zip(whole["weights"], parts["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert [x["loss"] for x in parts["log"]] == pytest.approx([x["loss"] for x in whole["log"]], rel=1e-4)


def test_first_step_starts_at_the_reference(world: Path, tmp_path: Path) -> None:
    log = run(str(world), str(tmp_path), {"pairs": 24}, dropout=0.0)["log"]
    assert log[0]["align"] == pytest.approx(np.log(2), rel=1e-5) and log[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert log[0]["cosine_to_reference"] == pytest.approx(1, abs=1e-5) and len(log) == 2


def test_margin_grows_and_similarity_holds_it_back(world: Path, tmp_path: Path) -> None:
    free, held = (
        run(str(world), str(tmp_path / str(w)), {"similarity_weight": w, "place_contrast": None, "epochs": 4})["log"]
        for w in (0.0, 20.0)
    )
    assert free[-1]["margin"] > 0.3 and free[-1]["align"] < free[0]["align"] - 0.05
    assert free[-1]["preferred_above"] > free[0]["preferred_above"]
    assert held[-1]["cosine_to_reference"] > max(0.99, free[-1]["cosine_to_reference"] + 0.005)
    assert 0 < held[-1]["margin"] < free[-1]["margin"]


def test_killed_and_resumed_is_undisturbed(world: Path, tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    whole = run(str(world), str(tmp_path / "whole"), {})
    ranks(1, run, str(world), str(tmp_path / "killed"), {}, 0.05, 5, killed=True)
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == 5  # checkpointed after the third
    resumed = run(str(world), str(tmp_path / "killed"), {})
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], resumed["weights"], strict=True))
    assert torch.equal(whole["vectors"], resumed["vectors"])
    assert resumed["log"] == whole["log"] and len(whole["log"]) == 8
    assert json.loads((tmp_path / "killed/metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
    done = run(str(world), str(tmp_path / "killed"), {})  # nothing is left to do
    assert torch.equal(done["vectors"], whole["vectors"])


def test_two_ranks_do_what_one_does(world: Path, tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    one = run(str(world), str(tmp_path / "one"), {"batch_pairs": 9}, dropout=0.0)
    two = ranks(2, run, str(world), str(tmp_path / "two"), {"batch_pairs": 9}, 0.0)
    assert [x["world"] for x in (one, *two)] == [1, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(two[0]["weights"], two[1]["weights"], strict=True))
    torch.testing.assert_close(two[0]["vectors"], one["vectors"], rtol=1e-3, atol=1e-4)
    assert [x["loss"] for x in two[0]["log"]] == pytest.approx([x["loss"] for x in one["log"]], rel=1e-3)


def test_ladder_changes_one_thing_a_rung() -> None:
    reward, gdpo = RewardConfig(), GDPOConfig()
    rungs = [LADDER[name](reward, gdpo) for name in LADDER]
    assert list(LADDER) == ["dpo-pr", "dpo-lr", "dpo-lrd", "dpo-lrdm", "dpo-lrdms", "g-dpo"]
    changed = []
    for (r1, g1), (r2, g2) in pairwise(rungs):
        differs = [n for n in vars(r1) if vars(r1)[n] != vars(r2)[n]] + [
            n for n in vars(g1) if vars(g1)[n] != vars(g2)[n]
        ]
        changed.append(sorted(differs))
    assert changed == [
        ["lists", "objective"],
        ["density_aware"],
        ["collaborative_share"],
        ["similarity_weight"],
        ["similarity_weight"],
    ]
    assert rungs[-1] == (reward, gdpo) and (gdpo.beta, gdpo.similarity_weight, reward.negatives) == (0.9, 1.5, 15)
    assert [g.similarity_weight for _, g in rungs] == [0, 0, 0, 0, 1.0, 1.5]


def test_schedule_and_counts() -> None:
    assert [schedule(s, 10, 0.2) for s in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert schedule(0, 1, 0.1) == 1
    assert pair_counts(pairs_of(90)) == {"geographic": 60, "collaborative": 30}


def test_errors(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gdpo.beta=0: expected more than 0"):
        GDPOConfig(beta=0)
    with pytest.raises(ValueError, match=r"gdpo.collaborative_share=1.5: expected a share"):
        GDPOConfig(collaborative_share=1.5)
    with pytest.raises(ValueError, match=r"gdpo.place_contrast=1.5: expected a share in \[0, 1\], or None"):
        GDPOConfig(place_contrast=1.5)
    with pytest.raises(ValueError, match=r"gdpo.batch_pairs=0: expected at least 1"):
        GDPOConfig(batch_pairs=0)
    with pytest.raises(ValueError, match=r"optimizer.warmup=1: expected a share"):
        OptimizerSettings(warmup=1)
    with pytest.raises(FloatingPointError, match=r"G-DPO: the loss is .*lower optimizer.learning_rate"):
        run(str(world), str(tmp_path), {"optimizer": OptimizerSettings(learning_rate=1e30)})
