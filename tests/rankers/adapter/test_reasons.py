"""Reasons: what is said is true, what is false is caught, and the model chooses among true sentences alone."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import catalog, requests, small_adapter

from placerank.rankers.adapter import checker as checker_module
from placerank.rankers.adapter.checker import Checker
from placerank.rankers.adapter.facts import Clause, Known, clauses, reference, sentence, sentences
from placerank.rankers.adapter.sentences import choose, free, spelt

KNOWN, CHECKER = Known.of_catalog(catalog()), Checker(catalog())
IDS = catalog()["item_id"].to_pylist()
NOW = 1_700_000_000
MONDAY_21 = 1_699_909_200  # Monday 13 November 2023, 21:00 UTC


def said(row: int, visited: list[int], place: tuple[float, float] | None, offset: float | None, now: int) -> list[str]:
    minute = None if offset is None else int((now + offset * 60) // 60 + 3 * 1440) % (7 * 1440)
    return sentences(clauses(KNOWN, row, visited, place, minute))


def test_every_sentence_of_many_requests_is_true() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(300):
        row = int(rng.integers(1, len(IDS)))
        visited = rng.integers(1, len(IDS), rng.integers(0, 12)).tolist()
        place = None if rng.random() < 0.3 else (40.73 + rng.normal(0, 0.02), -74 + rng.normal(0, 0.02))
        offset = None if rng.random() < 0.3 else float(rng.integers(-12, 14) * 60)
        now = NOW + int(rng.integers(0, 7 * 86_400))
        history = [(IDS[v], now - 1000 + i) for i, v in enumerate(visited)] + [("a", now), ("b", now + 5)]  # not yet
        for text in said(row, visited, place, offset, now):
            assert CHECKER.fault(text, IDS[row], history, place, now, offset) is None
            seen += 1
    assert seen > 3000


def test_what_is_said() -> None:
    here = (40.73, -74.0)
    visited = [1, 5, 5, 2]
    assert [c.text for c in clauses(KNOWN, 1, visited, here, 21 * 60)] == [
        "you have been here once",
        'you know 1 other place under "Jazz and Blues Venue"',
        "it is less than 0.1 km away",
        'it is listed under "Jazz and Blues Venue"',
        "it is open until 02:00",
    ]
    brand = [c.text for c in clauses(KNOWN, 4, [2, 2], None)]
    assert brand == [
        "you have not been here yet",
        'it belongs to "Joe\'s and Son", where you have been 2 times at other addresses',
        'it is listed under "Café"',
    ]
    assert clauses(KNOWN, 3, [], None) == [Clause("visits 0", "you have not been here yet")]
    assert "listed under \"The 'Best' and Only\"" in " ".join(c.text for c in clauses(KNOWN, 2, [], None))
    assert [c.text for c in clauses(KNOWN, 2, [1], None)][2] == "it is 1.1 km from your last visit"


@pytest.mark.parametrize("minute", [0, 5, 7 * 1440 - 1])
def test_a_place_that_never_closes_has_no_closing_time(minute: int) -> None:
    assert not [c for c in clauses(KNOWN, 6, [], None, minute) if c.kind == "hours"]


def test_the_end_of_hours_goes_over_midnight_and_the_week() -> None:
    known = Known(["", ""], ["", ""], [0.0, 0.0], [0.0, 0.0], [None, [(7 * 1440 - 60, 90)]])
    of = lambda minute: [c.text for c in clauses(known, 1, [], None, minute) if c.kind == "hours"]  # noqa: E731
    assert of(7 * 1440 - 60) == of(0) == of(89) == ["it is open until 01:30"]
    assert of(90) == of(7 * 1440 - 61) == []


def test_any_number_or_name_that_is_changed_is_caught() -> None:
    visited = [1, 1, 5, 2, 2, 2]
    history = [(IDS[v], NOW - 100 + i) for i, v in enumerate(visited)]
    place, tries = (40.7345, -74.0), 0
    for row in (1, 2, 4, 5):
        for text in said(row, visited, place, None, NOW):
            wrong = [re.sub(r"\d+(?= times)", lambda m: str(int(m[0]) + 1), text), re.sub("once", "2 times", text)]
            wrong += [re.sub(r"(\d+\.\d) km", lambda m: f"{float(m[1]) + 0.2:.1f} km", text)]
            wrong += [re.sub(r'"([^"]+)"', r'"\1 Bar"', text), text.replace("not been here yet", "been here once")]
            wrong += [text.replace("less than 0.1", "0.4"), text.replace("away", "from your last visit")]
            wrong += [re.sub(r"know (\d+) other", lambda m: f"know {int(m[1]) + 1} other", text), text[:-1], text + "."]
            wrong += [text.replace(" and ", " or ", 1) if '"' not in text else text + " Really."]
            wrong += [text[:-1] + " and it is open until 22:00.", "", text.lower(), f"{text[:-1]} and it is cheap."]
            for false in wrong:
                if false != text:
                    tries += 1
                    assert CHECKER.fault(false, IDS[row], history, place, NOW) is not None, false
    assert tries > 300


def test_the_other_places_sentence_is_caught() -> None:
    visited = [1, 1, 5]
    history = [(IDS[v], NOW - 100 + i) for i, v in enumerate(visited)]
    about = {row: set(said(row, visited, (40.73, -74.0), None, NOW)) for row in (1, 2, 5, 6)}
    for row, own in about.items():
        for other, texts in about.items():
            for text in texts - own:
                assert CHECKER.fault(text, IDS[row], history, (40.73, -74.0), NOW) is not None, (row, other, text)


def test_hours_are_checked_at_the_local_time() -> None:
    text = "It is open until 02:00."
    assert CHECKER.fault(text, "a", [], None, MONDAY_21, 0.0) is None
    assert "its hours are" in str(CHECKER.fault(text, "a", [], None, MONDAY_21, -120.0))
    assert "not known" in str(CHECKER.fault(text, "a", [], None, MONDAY_21, None))
    assert "not known" in str(CHECKER.fault(text, "b", [], None, MONDAY_21, 0.0))
    with pytest.raises(KeyError):
        CHECKER.fault(text, "nowhere", [], None, NOW)


def test_the_checker_knows_nothing_of_who_makes_sentences() -> None:
    tree = ast.parse(Path(str(checker_module.__file__)).read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported == {"collections.abc", "math", "re", "typing", "pyarrow"}


def test_the_reference_takes_what_tells_most() -> None:
    true = [Clause("visits 0", "you a"), Clause("distance <1", "it b"), Clause("category", "it c")]
    assert reference(true, {"visits 0": -1.0, "distance <1": 0.5, "category": 0.7}) == "It c and it b."
    assert reference(true, {"visits 0": -1.0, "distance <1": -0.5, "category": 0.7}) == "It c."
    assert reference(true, {}) == "You a."
    assert sentence(true[:1]) == "You a."


def chosen_slowly(model, ids, rows, seen, allowed):  # type: ignore[no-untyped-def]
    """One token at a time, with a mask over the whole vocabulary, for one text."""
    left, written = {s: spelt(model, s) for s in allowed}, []
    while not (written and written[-1] == model.end):
        mask = torch.full((len(model.tokenizer),), -torch.inf)
        mask[[t[len(written)] for t in left.values() if t[: len(written)] == written]] = 0.0
        written.append(int((model.write([[*ids, *written]], rows, seen)[0, -1] + mask).argmax()))
    return next(s for s, tokens in left.items() if tokens == written)


@torch.no_grad()
def test_choice_is_that_of_masks_at_every_token_and_one_of_those_allowed() -> None:
    q, differ = requests([[1, 5, 2], [], [3], [1, 1, 4, 6, 2]]), set()
    place = torch.tensor([1, 2, 3, 4])
    allowed = [said(int(r), q.item[i][q.seen[i]].tolist(), (40.7, -74.0), None, NOW) for i, r in enumerate(place)]
    for seed in range(3):
        model = small_adapter(seed)
        rows, seen = model.told_of(q, place)
        ids = [model.tokens(t) for t in ("Why?", "Why there, of all places?\n", "?", "Why there?\n")]
        found = choose(model, ids, rows, seen, allowed)
        slow = [chosen_slowly(model, ids[i], rows[i : i + 1], seen[i : i + 1], allowed[i]) for i in range(4)]
        assert found == slow and all(s in some for s, some in zip(found, allowed, strict=True))
        differ.update(found)
        assert free(model, ids[0], rows[:1], seen[:1], most=5) not in allowed[0]
    assert len(differ) > 4, "the model has a say"
    assert all(model.tokenizer.decode(spelt(model, s)[:-1]) == s for some in allowed for s in some)
    with pytest.raises(ValueError, match="no sentence"):
        choose(model, ids, rows, seen, [["A."], [], ["A."], ["A."]])
