"""A sentence that the language model chooses among given ones: at each token, what leads to one of them is allowed.

Where one token alone is allowed the model is not asked, so a sentence of thirty tokens costs as many passes as there
are choices in it, which requests make together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import RecAdapter


def choose(
    model: RecAdapter,
    ids: Sequence[Sequence[int]],
    rows: Tensor,
    seen: Tensor,
    sentences: Sequence[Sequence[str]],
) -> list[str]:
    """The sentence of each text, greedily by token.

    Args:
        model: in eval mode.
        ids: tokens of the questions that sentences answer.
        rows, seen: as for ``RecAdapter.read``.
        sentences: those allowed, one or more each.

    Raises:
        ValueError: no sentence is allowed.
    """
    if not all(sentences):
        raise ValueError("a text has no sentence that it may go on with; give each at least one")
    left = [[(s, spelt(model, s)) for s in dict.fromkeys(some)] for some in sentences]
    at = [0] * len(ids)
    while True:
        for i, some in enumerate(left):  # what is forced
            while len(some) > 1 and len({tokens[at[i]] for _, tokens in some}) == 1:
                at[i] += 1
        open_ = [i for i, some in enumerate(left) if len(some) > 1]
        if not open_:
            return [some[0][0] for some in left]
        texts = [[*ids[i], *left[i][0][1][: at[i]]] for i in open_]
        which = torch.tensor(open_)
        logits = model.write(texts, rows[which], seen[which])
        for row, i in enumerate(open_):
            allowed = sorted({tokens[at[i]] for _, tokens in left[i]})
            best = allowed[int(logits[row, len(texts[row]) - 1, allowed].argmax())]
            left[i] = [(s, tokens) for s, tokens in left[i] if tokens[at[i]] == best]


def spelt(model: RecAdapter, sentence: str) -> list[int]:
    """A sentence's tokens, and the end: so none is the beginning of another."""
    return [*model.tokenizer(sentence, add_special_tokens=False)["input_ids"], model.end]


def free(model: RecAdapter, ids: Sequence[int], rows: Tensor, seen: Tensor, most: int = 60) -> str:
    """What the model would write if all were allowed, greedily: what constraints are compared with.

    Args:
        ids, rows, seen: of one text, as for ``choose``: rows [1, N, d].
        most: tokens, at most.
    """
    written: list[int] = []
    while len(written) < most and len(ids) + len(written) < model.longest:
        token = int(model.write([[*ids, *written]], rows, seen)[0, -1].argmax())
        if token == model.end:
            break
        written.append(token)
    return str(model.tokenizer.decode(written))
