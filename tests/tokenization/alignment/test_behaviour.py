"""Content-behaviour alignment: pairs of the past alone, the loss by hand, ranks and restarts, and that it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from towns import town_encoder, towns

from placerank.tokenization.alignment.behaviour import (
    BehaviourConfig,
    VisitPairs,
    align_behaviour,
    anchor_vectors,
    contrastive_loss,
    item_pairs,
    known_positives,
    mean_vectors,
    partner_measures,
    user_pairs,
    user_places,
    user_texts,
)
from placerank.tokenization.alignment.finetune import OptimizerSettings
from placerank.tokenization.alignment.histories import Histories, cooccurrence
from placerank.tokenization.alignment.lora import LoraSettings, add_adapter
from placerank.tokenization.ranks import joined

FAST = OptimizerSettings(learning_rate=5e-3, checkpoint_every=4)
KINDS = ("bar", "gym", "shop", "museum", "ramen")


def visits(users: int = 150) -> Histories:
    """Users keep to one kind of place, wherever it is: not what the names alone say first."""
    prompts, _ = towns()
    kind = np.array([KINDS.index(text.split()[0]) for text in prompts.content.to_pylist()])
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), 10)
    item = np.concatenate([rng.permutation(np.flatnonzero(kind == u % 5))[:10] for u in range(users)])
    return Histories(user, item, np.tile(np.arange(10), users), 240)


def pairs_of(count: int, users: bool = False) -> VisitPairs:
    rng = np.random.default_rng(1)
    a, b, _ = cooccurrence(visits(), 2)
    items = item_pairs(a, b, count, 3, rng)
    if not users:
        return items
    more = user_pairs(visits(), count, 3, rng)
    return VisitPairs(*(np.concatenate([getattr(p, n) for p in (items, more)]) for n in vars(items)))


def run(folder: str, kind: str, model: str, count: int = 60, epochs: int = 1) -> dict[str, Any]:
    """Align on ``count`` pairs of items (and as many of users)."""
    torch.set_num_threads(1)
    prompts, _ = towns()
    encoder = town_encoder(Path(model))
    parameters = add_adapter(encoder, LoraSettings(dropout=0.0))
    config = BehaviourConfig(
        pairs=count,
        users=kind,  # type: ignore[arg-type]
        history=3,
        batch_pairs=17,
        epochs=epochs,
        optimizer=FAST,
    )
    log = align_behaviour(encoder, parameters, prompts, pairs_of(count, kind != "none"), config, Path(folder), seed=1)
    return {"log": log, "vectors": encoder.encode(prompts.texts()), "encoder": encoder}


def light(folder: str, kind: str, model: str) -> dict[str, Any]:
    with joined() as at:
        done = run(folder, kind, model)
    return {"log": done["log"], "vectors": done["vectors"], "world": at.world}


def test_user_pairs_know_only_what_was_strictly_before() -> None:
    history = Histories(
        np.array([3, 3, 3, 3, 3, 8, 8, 9]), np.array([0, 1, 0, 2, 4, 5, 6, 7]), np.array([1, 2, 3, 4, 4, 7, 7, 1]), 9
    )
    pairs = user_pairs(history, 100, 3, np.random.default_rng(0))
    found = {int(p): a.tolist() for a, p in zip(pairs.anchor, pairs.positive, strict=True)}
    # Item 0 counts at its last visit; 2 and 4 are of one moment, and so are 5 and 6; user 9 went nowhere before.
    assert found == {0: [1, -1, -1], 2: [0, 1, -1], 4: [0, 1, -1]}
    assert pairs.is_user.all() and len(user_pairs(history, 2, 3, np.random.default_rng(0))) == 2
    users, places = user_places(history, 2)
    assert users.tolist() == [3, 8, 9]
    assert places[0].tolist() == [4, 2] and set(places[1]) == {5, 6} and places[2].tolist() == [7, -1]


def test_user_text_is_the_latest_places_contents_at_the_latest_place() -> None:
    prompts, _ = towns()
    content, location = prompts.content.to_pylist(), prompts.location.to_pylist()
    got = user_texts(prompts, np.array([[4, 9, -1], [7, -1, -1], [2, 2, -1]]))
    assert got == [
        f"{content[4]}; {content[9]} | {location[4]}",
        f"{content[7]} | {location[7]}",
        f"{content[2]} | {location[2]}",
    ]


def test_loss_by_hand() -> None:
    anchors, positives = torch.tensor([[2.0, 0], [0, 1], [1, 1]]), torch.tensor([[1.0, 0], [0, 3], [1, 0]])
    known = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1]]).bool()
    root = np.sqrt(0.5)
    cosine = np.exp(np.array([[1, 0, 1], [0, 1, 0], [root, root, root]]) / 0.5) * ~known.numpy() + np.diag(
        np.exp(np.array([1, 1, root]) / 0.5)
    )
    own = np.diag(cosine)
    by_hand = -(np.log(own / cosine.sum(1)).mean() + np.log(own / cosine.sum(0)).mean()) / 2
    assert contrastive_loss(anchors, positives, known, 0.5).item() == pytest.approx(by_hand, rel=1e-6)
    batch = VisitPairs(np.array([[1, 2], [5, -1], [3, -1]]), np.array([7, 2, 7]), np.zeros(3, bool))
    assert known_positives(batch).tolist() == [[True, True, True], [False, True, False], [True, False, True]]


def test_means_leave_out_what_is_not_there() -> None:
    vectors = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [5.0, 0.0]]])
    there = torch.tensor([[True, True], [False, False]])
    assert mean_vectors(vectors, there).tolist() == [[pytest.approx(0.3), pytest.approx(0.9)], [0, 0]]


def test_partner_ranks_are_those_of_sorting() -> None:
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(60, 8))).float()
    pairs = item_pairs(np.arange(0, 40), np.arange(20, 60), 40, 2, rng)
    got = partner_measures(vectors, vectors[torch.from_numpy(pairs.anchor[:, 0])], pairs)
    unit = torch.nn.functional.normalize(vectors, dim=1).numpy()
    ranks = []
    for anchor, positive in zip(pairs.anchor[:, 0], pairs.positive, strict=True):
        order = [i for i in np.argsort(-(unit @ unit[anchor])) if i != anchor]
        ranks.append(order.index(positive) + 1)
    assert got["recall@10"] == pytest.approx(np.mean(np.array(ranks) <= 10))
    assert got["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert got["recall_by_chance"] == 10 / 60


@pytest.mark.parametrize("kind", ["none", "text", "mean"])
def test_learns_what_is_visited_together(tmp_path: Path, kind: str) -> None:
    """Two places of one kind become more alike than two of different kinds, towns apart, as the users have it."""
    model = str(tmp_path / "model")
    prompts, _ = towns()
    before = town_encoder(Path(model)).encode(prompts.texts())
    done = run(str(tmp_path / "run"), kind, model, 340, epochs=3)
    words = np.array([text.split() for text in prompts.content.to_pylist()])
    a, b = np.triu_indices(240, 1)
    apart = words[a, 1] != words[b, 1]
    a, b = a[apart], b[apart]
    auc = [
        roc_auc_score(words[a, 0] == words[b, 0], (x[torch.from_numpy(a)] * x[torch.from_numpy(b)]).sum(1).numpy())
        for x in (before, done["vectors"])
    ]
    assert auc[1] > auc[0] + 0.1 and auc[1] > 0.8
    assert np.mean([x["loss"] for x in done["log"][-5:]]) < np.mean([x["loss"] for x in done["log"][:5]])
    if kind != "none":
        test = user_pairs(visits(200), 200, 3, np.random.default_rng(9))
        encoders = town_encoder(Path(model)), done["encoder"]
        mrr = [
            partner_measures(x, anchor_vectors((encoder, prompts) if kind == "text" else None, x, test), test)["mrr"]
            for encoder, x in zip(encoders, (before, done["vectors"]), strict=True)
        ]
        assert mrr[1] > 1.3 * mrr[0]


def test_two_ranks_do_what_one_does(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    model = str(tmp_path / "model")
    one = light(str(tmp_path / "one"), "text", model)
    two = ranks(2, light, str(tmp_path / "two"), "text", model)
    assert [x["world"] for x in (one, *two)] == [1, 2, 2]
    assert torch.equal(two[0]["vectors"], two[1]["vectors"])
    assert [x["loss"] for x in two[0]["log"]] == pytest.approx([x["loss"] for x in one["log"]], rel=1e-3)
    torch.testing.assert_close(two[0]["vectors"], one["vectors"], rtol=1e-2, atol=1e-3)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"behaviour.users: got 'vector', expected one of none, text, mean"):
        BehaviourConfig(users="vector")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"behaviour.temperature=0: expected more than 0"):
        BehaviourConfig(temperature=0)
    with pytest.raises(ValueError, match=r"behaviour.batch_pairs=1: expected at least 2"):
        BehaviourConfig(batch_pairs=1)
    with pytest.raises(ValueError, match=r"got 1 pairs of places visited together, expected at least 2; lower"):
        run(str(tmp_path / "run"), "none", str(tmp_path / "model"), 1)
