"""Further labels, amount and weight on their way into samples: what samples get, and what is counted of them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import LABEL
from ..raw.outcomes import Outcomes
from ..requests import OWN
from .buckets import Bucket
from .own import Extra


def extras(outcomes: Outcomes, visits_alone: bool) -> tuple[Extra, ...]:
    """What samples get. Negatives that are drawn beside a visit have no label and no amount, and its weight."""
    found = []
    for name in outcomes.names:
        shared = visits_alone and name == outcomes.weight
        of: Any = "request" if shared else "candidate"
        found.append(Extra(name=OWN + name, column=OWN + name, of=of, form="raw"))
    return tuple(found)


def counts(outcomes: Outcomes, b: Bucket, train: NDArray[np.bool_]) -> Counter[tuple[str, ...]]:
    """Of a bucket's training rows: ("positives", label), ("outside", later, earlier): positives of one label where
    another is 0; ("rows",) with an amount and its ("sum",)."""
    found: Counter[tuple[str, ...]] = Counter()
    labels = {LABEL: b.label[train] == 1} | {name: b.own[OWN + name][train] == 1 for name in outcomes.labels}
    for name in outcomes.labels:
        found["positives", name] = int(labels[name].sum())
    for later, of in labels.items():
        for earlier, before in labels.items():
            if later != earlier:
                found["outside", later, earlier] = int((of & ~before).sum())
    if outcomes.amount is not None:
        amount = b.own[OWN + outcomes.amount][train].astype(np.float64)
        found["rows",], found["sum",] = int((amount > 0).sum()), float(amount.sum())  # type: ignore[assignment]
    return found


def described(outcomes: Outcomes, counted: Iterable[Counter[tuple[str, ...]]]) -> dict[str, Any]:
    """For the manifest: ``outcomes``, the columns, and under ``train`` what is counted of all buckets, in their order;
    nothing where there are none."""
    if not outcomes.names:
        return {}
    total: Counter[tuple[str, ...]] = Counter()
    for one in counted:
        total.update(one)
    labels = (LABEL, *outcomes.labels)
    found = {
        "labels": list(outcomes.labels),
        "amount": outcomes.amount,
        "weight": outcomes.weight,
        "train": {
            "positives": {name: total["positives", name] for name in outcomes.labels},
            "outside": {a: {b: total["outside", a, b] for b in labels if b != a} for a in labels},
            "amount": {"rows": total["rows",], "sum": total["sum",]},
        },
    }
    return {"outcomes": found}


def in_words(manifest: dict[str, Any], rows: int) -> list[str]:
    """For the summary: what each column was taken for.

    Args:
        manifest: with what ``described`` gave.
        rows: of the training split.
    """
    if (described := manifest.get("outcomes")) is None:
        return []
    train = described["train"]
    found = [
        f"interactions.{name}: label, {train['positives'][name]:,} of {rows:,} training rows"
        for name in described["labels"]
    ]
    if described["amount"]:
        total, n = train["amount"]["sum"], train["amount"]["rows"]
        found.append(f"interactions.{described['amount']}: amount, {total:,.2f} in {n:,} training rows")
    if described["weight"]:
        found.append(f"interactions.{described['weight']}: weight of samples in training")
    return found
