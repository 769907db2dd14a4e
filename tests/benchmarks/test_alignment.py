"""What the alignment's benchmark makes of its cells; that it goes on with those that are done."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from placerank.benchmarks import bench_alignment as bench
from placerank.tokenization.alignment.gdpo import LADDER, GDPOConfig
from placerank.tokenization.alignment.reward import RewardConfig
from placerank.tokenization.judging.coverage import AT


def line(variant: str, seed: int, town: float, similar: float, by_before: float) -> dict[str, Any]:
    names = [f"{name}@{k}" for name in ("similarity", "similarity_before", "P", "C", "T") for k in AT]
    rest = {name: 0.5 for name in (*names, "nmi_province", "nmi_city", "nmi_district")}
    mine = {"T@5": town, "similarity@5": similar, "similarity_before@5": by_before}
    return {"dataset": "d", "variant": variant, "seed": seed, **rest, **mine}


LINES = [line("before", 0, 0.2, 0.8, 0.8), line("g-dpo", 0, 0.4, 0.84, 0.76), line("g-dpo", 1, 0.5, 0.8, 0.78)]


def test_changes_by_hand() -> None:
    assert bench.changes(LINES, "T@5", "T@5")["d", "g-dpo"] == pytest.approx([100, 150])
    # Similarity by the encoder before is compared with that before, not with itself.
    assert bench.changes(LINES, "similarity_before@5", "similarity@5")["d", "g-dpo"] == pytest.approx([-5, -2.5])


def test_summary_and_picture() -> None:
    told = bench.summary(LINES)
    assert re.search(r"\| before \| 1 \| 0.800 \|", told)
    assert "| g-dpo | 2 | +125.0 ± 35.4 | +2.5 ± 3.5 | -3.8 ± 1.8 |" in told
    figure = bench.frontier(LINES)
    (ax,) = figure.axes
    assert ax.get_title() == "d" and ax.get_xlim()[0] <= -4.5 and ax.get_ylim()[1] >= 125


def test_variants_hold_the_ladder_and_what_they_say() -> None:
    assert set(LADDER) <= set(bench.VARIANTS) and next(iter(bench.VARIANTS)) == "g-dpo"
    made = {name: make(RewardConfig(), GDPOConfig())[1] for name, make in bench.VARIANTS.items()}
    for name, gdpo in made.items():
        if found := re.fullmatch(r"contrast-(0\.\d)", name):
            assert gdpo.place_contrast == float(found[1])
    assert {made[n].similarity_weight for n in ("dpo-lrdms", "g-dpo", "lambda-1.8")} == {1.0, 1.5, 1.8}
    assert made["contrast-batch"].place_contrast is None and not made["as-printed"].centred


def test_order_and_settings(tmp_path: Path) -> None:
    order = list(bench.cells(["x", "y"], 2))
    untrained = 1 + len(bench.AMPLIFIED)
    assert order[0] == ("x", "before", 0) and order[untrained] == ("y", "before", 0)
    assert order[2 * untrained :][:4] == [(d, "g-dpo", s) for s in (0, 1) for d in "xy"]
    assert len(set(order)) == len(order) == 2 * untrained + 2 * 2 * len(bench.VARIANTS)
    bench.check_settings(tmp_path)
    bench.check_settings(tmp_path)
    file = tmp_path / "settings.json"
    changed = json.loads(file.read_text())
    changed["GDPOConfig"]["pairs"] += 1
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"were made with other settings .* give another folder by --out"):
        bench.check_settings(tmp_path)
