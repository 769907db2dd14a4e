"""The reward model: losses and measures by hand, and that it learns distance where content tells the place."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score, roc_auc_score
from towns import town_encoder, towns

from placerank.tokenization.alignment.locations import Lists
from placerank.tokenization.alignment.reward import (
    RewardConfig,
    RewardModel,
    encode_lists,
    listwise_loss,
    pairwise_loss,
    train_reward,
)
from placerank.tokenization.alignment.reward_measures import list_measures
from placerank.tokenization.text.encoders import Encoder
from placerank.tokenization.text.prompts import Prompts


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return town_encoder(tmp_path_factory.mktemp("bert"))


def test_losses_by_hand() -> None:
    scores, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.25]])
    sigma = 1 / (1 + np.exp(-np.array([0.5, -1.0])))
    by_hand = -(np.log(sigma[0]) + 0.25 * np.log(sigma[1]) + 0.75 * np.log(1 - sigma[1])) / 2
    assert listwise_loss(scores, labels).item() == pytest.approx(by_hand)
    assert pairwise_loss(scores).item() == pytest.approx(-np.log(1 / (1 + np.exp(-1.5))))
    best = labels.logit(eps=1e-7)
    assert listwise_loss(best, labels) < listwise_loss(best + 1, labels)  # unlike the term that the paper prints


def test_measures_are_those_of_scipy_and_sklearn() -> None:
    rng = np.random.default_rng(0)
    km = np.concatenate([np.zeros((50, 1)), rng.uniform(1, 9, (50, 9))], axis=1)
    lists = Lists(np.zeros((50, 10), np.int64), km)
    score = rng.normal(size=(50, 10)) - 0.2 * km
    got = list_measures(torch.from_numpy(score), lists)
    assert got["spearman"] == pytest.approx(
        np.mean([spearmanr(s, -d)[0] for s, d in zip(score[:, 1:], km[:, 1:], strict=True)])
    )
    assert got["ndcg"] == pytest.approx(ndcg_score(lists.labels, score))
    random = [ndcg_score(lists.labels, rng.normal(size=(50, 10))) for _ in range(200)]
    assert got["ndcg_chance"] == pytest.approx(np.mean(random), abs=0.01)
    aucs = []
    for s, d in zip(score[:, 1:], km[:, 1:], strict=True):
        order = np.argsort(d)
        picked = np.concatenate([order[:3], order[-3:]])
        aucs.append(roc_auc_score([1] * 3 + [0] * 3, s[picked]))
    assert got["auc_near_far"] == pytest.approx(np.mean(aucs))
    assert got["auc_own"] == pytest.approx((score[:, :1] > score[:, 1:]).mean())
    perfect = list_measures(torch.from_numpy(-km), lists)
    assert perfect["spearman"] == pytest.approx(1) and perfect["ndcg"] == pytest.approx(1)
    constant = list_measures(torch.zeros(50, 10), lists)
    assert (constant["spearman"], constant["auc_near_far"], constant["auc_own"]) == (0, 0.5, 0.5)
    one = list_measures(torch.zeros(1, 2), Lists(np.zeros((1, 2), np.int64), np.array([[0, 1.0]])))
    assert np.isnan(one["spearman"]) and one["auc_own"] == 0.5


def test_vectors_of_lists_are_those_of_their_prompts(encoder: Encoder, tmp_path: Path) -> None:
    prompts, places = towns()
    lists = places.lists(np.array([0, 5, 0]), 15, True, np.random.default_rng(0))
    assert lists.items.shape == (3, 6)  # six districts in all
    data = encode_lists(encoder, prompts, places, lists, tmp_path, {}, "test")
    assert len(data.vectors) == 12  # two different items
    for row in range(3):
        texts = prompts.texts(np.full(6, lists.items[row, 0]), lists.items[row])
        torch.testing.assert_close(data.vectors[data.at[row]], encoder.encode(texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["listwise", "pairwise"])
def test_learns_distance_for_unseen_items(encoder: Encoder, tmp_path: Path, objective: str) -> None:
    prompts, places = towns()
    config = RewardConfig(objective=objective, epochs=40, hidden=64, learning_rate=3e-3)  # type: ignore[arg-type]
    model, report = train_reward(encoder, prompts, places, config, tmp_path, {}, seed=0)
    assert report["held_out_items"] == 24 and report["training_lists"] == 216
    measured = report["held_out"]["density"]
    assert measured["auc_near_far"] > 0.9 and measured["auc_own"] > 0.8
    assert measured["ndcg"] > measured["ndcg_chance"] + 0.1
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"] and len(report["curve"]) == 40
    again = RewardModel.load(tmp_path / "reward.safetensors")
    x = torch.randn(3, 32)
    assert torch.equal(again(x), model(x))
    other, other_report = train_reward(encoder, prompts, places, config, tmp_path, {}, seed=0)
    assert torch.equal(other(x), model(x)) and other_report == report  # from the stored vectors, to the bit


def test_held_out_contents_are_in_no_training_prompt(encoder: Encoder, tmp_path: Path) -> None:
    prompts, places = towns()
    seen: list[str] = []
    original = encoder.encode
    encoder.encode = lambda texts: seen.extend(texts) or original(texts)  # type: ignore[method-assign,assignment,func-returns-value,misc]
    names = pa.array([f"{text} {i}" for i, text in enumerate(prompts.content.to_pylist())])
    unique = Prompts(names, prompts.location, prompts.separator, prompts.unknown)
    try:
        train_reward(encoder, unique, places, RewardConfig(epochs=1), tmp_path, {}, seed=0)
    finally:
        del encoder.encode
    contents = [text.split(" | ")[0] for text in seen]
    training, held_out = set(contents[: 216 * 6]), set(contents[216 * 6 :])
    assert (len(training), len(held_out)) == (216, 24) and not training & held_out


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"reward.objective: got 'triple', expected one of listwise, pairwise"):
        RewardConfig(objective="triple")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reward.negatives=0: expected at least 1"):
        RewardConfig(negatives=0)
    with pytest.raises(ValueError, match=r"reward.learning_rate=0: expected more than 0"):
        RewardConfig(learning_rate=0)
