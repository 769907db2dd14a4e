"""Questions: what people ask for, in the words that routing is taught, and the line that a language model reads.

Two intents: to be recommended places, or to be told why. The lists are ours, and few; ``HELD_OUT`` is never trained on
and measures whether other words are understood.
"""

from datetime import UTC, datetime

import numpy as np

INTENTS = ("recommend", "explain")
NEXT = "Where to next?"
"""What a request without words asks."""
WHY = "Why there?"
"""What the reason of a listed place answers."""

_RECOMMEND = (
    NEXT,
    "Where should I go now?",
    "Find me a place nearby.",
    "Recommend something close.",
    "What is good around here?",
    "Any ideas for tonight?",
    "Show me places that I would like.",
    "I want to go out.",
    "Suggest a spot for me.",
    "Give me ten places.",
    "What can I do here?",
    "Where can I go after work?",
    "List some places near me.",
    "I am bored, where do people go?",
    "Which places fit me?",
)
_WANTED = (
    "Find me {}.",
    "Where is {}?",
    "I want {}.",
    "Recommend {} nearby.",
    "Any {} around here?",
    "Show me {} close by.",
    "I am looking for {}.",
)
"""With a category."""
_EXPLAIN = (
    WHY,
    "Why this place?",
    "Why do you recommend it?",
    "Explain the first one.",
    "What is the reason?",
    "How come you chose that?",
    "Tell me why I should go there.",
    "What makes it right for me?",
    "Why is it on my list?",
    "Give me a reason to go.",
    "Explain your choice.",
    "What speaks for it?",
    "Why would I like that?",
    "On what grounds did you pick it?",
    "Justify the recommendation.",
)
_EXPLAIN_NAMED = ("Why {}?", "Why do you suggest {}?", "Explain {}.", "What is the reason for {}?", "Why go to {}?")
"""With a place's name."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "recommend": (
        "Where could we go for dinner?",
        "Got any tips for this afternoon?",
        "Take me somewhere new.",
        "Please suggest places close to me.",
        "I need somewhere to sit and read.",
        "What should I visit tomorrow?",
        "Is there anything fun near here?",
        "Looking for a place to eat.",
        "Surprise me with a spot.",
        "Help me find something to do.",
        "What places are nearby?",
        "Show some options around me.",
    ),
    "explain": (
        "Why did you put this first?",
        "What is your reasoning?",
        "Explain why that one came up.",
        "How did you come to suggest this?",
        "For what reason is this listed?",
        "Why should that suit me?",
        "Tell me the reason for this pick.",
        "Can you justify this?",
        "What made you choose it?",
        "Why not somewhere else?",
        "Explain this suggestion.",
        "Reasons, please.",
    ),
}


def line(text: str, seconds: int | None) -> str:
    """What the language model reads before it answers.

    Args:
        text: the question.
        seconds: local time, seconds since 1970-01-01 00:00 there; None: unknown.
    """
    when = "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%A %H:00. ")
    return f"{when}{' '.join(text.split())}\n"


def drawn_recommend(rng: np.random.Generator, path: list[str] | None) -> str:
    """A question for places: half of them ``NEXT``, a quarter names a level of the category path."""
    kind = rng.random()
    if kind < 0.25 and path:
        return _WANTED[rng.integers(len(_WANTED))].format(path[rng.integers(len(path))])
    return NEXT if kind < 0.75 else _RECOMMEND[rng.integers(len(_RECOMMEND))]


def drawn_explain(rng: np.random.Generator, name: str | None) -> str:
    """A question for a reason: half of them ``WHY``, a quarter names the place."""
    kind = rng.random()
    if kind < 0.25 and name:
        return _EXPLAIN_NAMED[rng.integers(len(_EXPLAIN_NAMED))].format(name)
    return WHY if kind < 0.75 else _EXPLAIN[rng.integers(len(_EXPLAIN))]


def every() -> list[str]:
    """All questions that training knows, without what is filled in: for a tokenizer."""
    return [*_RECOMMEND, *_EXPLAIN, *(t.format("") for t in (*_WANTED, *_EXPLAIN_NAMED))]
