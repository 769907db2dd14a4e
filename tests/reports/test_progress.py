"""A bar where a person sees it, a few plain lines where not, and nothing that a log would have to be rid of."""

import io
import logging
import sys

import pytest

from placerank.reports import progress as module
from placerank.reports.progress import Progress, duration, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that tests set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_061, "25 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_plain_lines_at_a_bounded_pace(clock, caplog, monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    caplog.set_level(logging.INFO, "placerank")
    with Progress("samples", 40_000, "rows") as progress:
        for second in range(1, 40_001):
            clock[0] = second
            progress.note(f"loss {second % 2}")
            progress.update()
    lines = caplog.messages
    assert lines[0] == "samples: 10 of 40,000 rows (0%), 10 s, 11 h 6 min left, loss 0"
    assert lines[1].startswith("samples: 20 of")
    assert 80 < len(lines) < 220, "eleven hours"
    assert stderr.getvalue() == ""


def test_short_work_and_other_ranks_say_nothing(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, "placerank")
    assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    for _ in tracked(range(100), "steps", shown=False):
        clock[0] += 10
    assert caplog.messages == []


def test_what_was_done_before_does_not_count_as_fast(clock):
    progress = Progress("train", 100, done=50)
    assert progress.seconds_left() is None
    clock[0] = 30
    progress.update(10)
    assert progress.seconds_left() == 120
    assert str(progress) == "60 of 100 steps (60%), 30 s, 2 min 0 s left"
    progress.update(60)
    assert progress.seconds_left() == 0


def test_nothing_to_do_and_an_unknown_total(clock):
    assert str(Progress("rows", 0, "rows")) == "0 rows, 0 s"
    progress = Progress("lines", unit="lines")
    progress.update(1234)
    assert str(progress) == "1,234 lines, 0 s"
    assert list(tracked(iter([]), "nothing")) == []


def test_a_terminal_gets_a_bar_and_a_pipe_what_is_printed(monkeypatch):
    stderr, stdout = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for i in tracked(range(3), "steps"):
        if i == 1:
            print("step 1: AUC 0.5")
    assert stdout.getvalue() == "step 1: AUC 0.5\n"
    assert "steps" in stderr.getvalue() and "3 of 3 steps (100%)" in stderr.getvalue()


def test_an_error_ends_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="bad"), Progress("rows") as progress:
        progress.update()
        raise ValueError("bad")
    assert not isinstance(sys.stdout, type(None)) and progress._bar.is_started is False
