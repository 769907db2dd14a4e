"""Questions: what is measured was not trained on, and what the language model reads."""

import numpy as np

from placerank.rankers.adapter.queries import HELD_OUT, INTENTS, NEXT, WHY, drawn_explain, drawn_recommend, every, line


def test_held_out_questions_are_not_trained_on() -> None:
    assert set(HELD_OUT) == set(INTENTS)
    held = {text for texts in HELD_OUT.values() for text in texts}
    assert len(held) == 24 and not held & set(every())


def test_drawn_questions_are_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    asked = [drawn_recommend(rng, ["Food", "Bar"]) for _ in range(400)]
    told = [drawn_explain(rng, "Fat Cat") for _ in range(400)]
    assert not set(asked) & set(told)
    assert 0.45 < asked.count(NEXT) / 400 < 0.6 and 0.45 < told.count(WHY) / 400 < 0.6
    named = [("Food" in a or "Bar" in a, "Fat Cat" in t) for a, t in zip(asked, told, strict=True)]
    assert all(0.18 < np.mean(x) < 0.32 for x in zip(*named, strict=True))
    assert "{}" not in "".join(asked + told)
    assert not {drawn_recommend(rng, []) for _ in range(200)} - set(every())
    assert not {drawn_explain(rng, None) for _ in range(200)} - set(every())


def test_a_line_has_day_and_hour_where_they_are_known() -> None:
    assert line("Where  to\nnext?", 1_700_000_000) == "Tuesday 22:00. Where to next?\n"
    assert line(NEXT, None) == "Where to next?\n"
