"""What the first ten places of a request bring, against a loop."""

from types import SimpleNamespace

import numpy as np

from placerank.benchmarks.bench_lift import of_first_ten


def test_the_first_ten_bring_what_the_truth_says_of_them() -> None:
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(30), 15)
    click, conversion, score = rng.random((3, len(request)))
    amount = rng.uniform(5, 50, len(request))
    truth = SimpleNamespace(click=click, conversion=conversion, amount=amount)
    found = of_first_ten(request, score, truth)  # type: ignore[arg-type]
    clicks, orders, money = 0.0, 0.0, 0.0
    for r in range(30):
        rows = np.flatnonzero(request == r)
        for i in sorted(rows, key=lambda i: -score[i])[:10]:
            clicks += click[i]
            orders += click[i] * conversion[i]
            money += click[i] * conversion[i] * amount[i]
    np.testing.assert_allclose([found["ctr"], found["orders"], found["gmv"]], [clicks / 300, orders / 300, money / 30])
    best = of_first_ten(request, click, truth)  # type: ignore[arg-type]
    assert best["ctr"] > found["ctr"]
