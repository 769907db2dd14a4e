"""The statistics of the papers' tables, and cells that are kept."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from placerank.benchmarks.papers import __main__ as command
from placerank.benchmarks.papers import cells as cells_module
from placerank.benchmarks.papers import rule
from placerank.benchmarks.papers.cells import Budget, Cell, Workplace, activity_parts, fits, locked, measure
from placerank.benchmarks.papers.grids import HGIT, NONE, PLAIN, REST, TABLES, grid_of
from placerank.benchmarks.papers.robust import least_p, robust_lines, robust_markdown, signed_rank
from placerank.benchmarks.papers.tables import SHOWN, VALIDATION, draw, lines_of, markdown
from placerank.benchmarks.papers.worlds import version
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.item_variance import ItemVariance
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.paired import mean_and_spread, paired_bootstrap, paired_t, ratio_bootstrap
from placerank.rankers.towers.tower import TOWERS
from placerank.tokenization.codes.tokenizers import TOKENIZERS
from placerank.training.predictions import Predictions


def test_interval_by_hand() -> None:
    # differences 1, 2, 3: mean 2, spread 1, t of 2 degrees of freedom 4.3027
    found = paired_t([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert found.sign == 0
    assert paired_t([2.0, 2.1, 1.9]).sign == 1
    assert paired_t([-2.0, -2.1, -1.9]).sign == -1


def test_one_seed_has_no_interval() -> None:
    found = paired_t([0.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high) and found.sign == 0
    assert math.isnan(mean_and_spread([0.5])[1])


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-5, 5))
def test_interval_agrees_with_scipy_and_moves_along(values: list[float], shift: float) -> None:
    ours, moved = paired_t(values), paired_t([v + shift for v in values])
    if np.std(values) > 1e-9:
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert moved.mean == pytest.approx(ours.mean + shift, abs=1e-9)
    assert moved.high - moved.low == pytest.approx(ours.high - ours.low, abs=1e-7)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = [(i := paired_t(list(rng.normal(0.3, 1, 5)))).low <= 0.3 <= i.high for _ in range(2_000)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_bootstrap_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 4_000)
    found = paired_bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 5)
    assert found == paired_bootstrap(values)
    assert math.isnan(paired_bootstrap([]).mean)


def test_bootstrap_of_a_ratio_is_near_fiellers_interval() -> None:
    """Fieller's is exact where both means are normal."""
    rng = np.random.default_rng(2)
    under = rng.normal(1.0, 1, 4_000)
    over = 1.1 * under + rng.normal(0, 0.5, 4_000)
    found = ratio_bootstrap(over, under)
    (aa, ab), (_, bb) = np.cov(over, under) / len(over)
    a, b, z = over.mean(), under.mean(), 1.96**2
    middle, width = a * b - z * ab, math.sqrt((a * b - z * ab) ** 2 - (a * a - z * aa) * (b * b - z * bb))
    want = [(middle + sign * width) / (b * b - z * bb) for sign in (-1, 1)]
    assert found.mean == pytest.approx(a / b)
    assert (found.low, found.high) == pytest.approx(want, abs=(want[1] - want[0]) / 10)
    assert math.isnan(ratio_bootstrap([1.0], [0.0]).mean) and math.isnan(ratio_bootstrap([], []).mean)


def test_grids_name_what_there_is() -> None:
    assert SHOWN.keys() == TABLES.keys()
    for table in TABLES:
        for tower, variants in grid_of(table, aligned=True).items():
            names = [v.name for v in variants]
            assert tower in TOWERS and len(names) == len(set(names))
            assert names[0] == {"users": "akt-gate", "users_frequent": "akt-users"}.get(table, PLAIN)
            assert {v.base for v in variants} <= {PLAIN, *names}
            assert all(v.akt.enabled for v in variants if v.user_history)
            assert all(v.tokenizer is None or v.tokenizer in TOKENIZERS for v in variants)
            assert all(v.tokenizer for v in variants if v.akt.enabled)
    by_name = {}
    for grid in TABLES.values():
        for variants in grid.values():
            for v in variants:
                v = replace(v, base=PLAIN)  # what differences are to doesn't change the cell
                assert by_name.setdefault(v.name, v) == v  # cells are shared by name


def test_lock_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "a.lock") as first, locked(tmp_path / "a.lock", wait=False) as second:
        assert first and not second
    with locked(tmp_path / "a.lock", wait=False) as again:
        assert again


def test_parts_cover_every_row(tmp_path: Path) -> None:
    simulate(SimulateConfig(out=tmp_path / "raw", items=150, users=200, requests=2_000, cities=2))
    prepared = prepare(PrepareConfig(input=tmp_path / "raw", out=tmp_path / "prepared"))
    rng = np.random.default_rng(0)
    n = 6_000
    p = Predictions(
        request=np.arange(n) // 10,
        user_index=np.arange(n) // 60,
        user_row=(np.arange(n) // 60).astype(np.int32),
        item_row=rng.integers(0, 151, n).astype(np.int32),
        label=(rng.random(n) < 0.3).astype(np.float32),
        logit=rng.normal(size=n).astype(np.float32),
        time=np.full(n, 1_704_067_200),
        visits=rng.integers(0, 2, n).astype(np.int32),
        lat=np.zeros(n, np.float32),
        lon=np.zeros(n, np.float32),
    )
    found = measure(p, prepared)
    for names in (
        ("head items", "mid items", "tail items"),
        ("first visits", "repeat visits"),
        ("dense places", "sparse places"),
        activity_parts("items"),
        activity_parts("users"),
    ):
        assert sum(found[name]["rows"] for name in names if name in found) == n == found["all"]["rows"]
    assert found["users of 0 to 2"]["rows"] >= (p.user_row == 0).sum()


def _keep(cell: Cell, auc: float, tail: float, requests: list[float]) -> None:
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    np.save(cell.path.with_suffix(".npy"), np.array(requests, np.float32))
    test = {"all": {"auc": auc, "request_auc": np.nanmean(requests)}, "tail items": {"auc": tail}}
    kept = {"config": {"of": cell.variant.name}, "test": test, "valid": [{"auc": 0.1}, {"auc": auc - 0.1, "epoch": 2}]}
    cell.path.write_text(json.dumps(kept))


def test_table_of_kept_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(Path("town"), tmp_path, Budget())
    monkeypatch.setattr(Workplace, "config", lambda self, tower, variant, seed, run: variant)
    monkeypatch.setattr(cells_module, "identity", lambda variant: {"of": variant.name})
    cells = [Cell(place, "din", v, seed) for v in (NONE, REST, HGIT) for seed in range(3)]
    for cell in cells[:3]:
        _keep(cell, 0.80 + cell.seed / 100, 0.7, [0.5, 0.5, math.nan])
    for cell in cells[3:6]:
        _keep(cell, 0.82 + cell.seed / 100 + (cell.seed == 2) / 1000, 0.7, [0.6, 0.6, math.nan])
    lines = lines_of("whole", cells)  # HGIT's cells are missing
    at = {(x["variant"], x["part"], x["metric"]): x for x in lines}
    assert {x["variant"] for x in lines} == {"none", "rest"}
    plain, rest = at["none", "all", "auc"], at["rest", "all", "auc"]
    assert (plain["seeds"], plain["mean"], plain["spread"], plain["difference"]) == (3, 0.81, 0.01, "")
    assert rest["difference"] == pytest.approx(0.02033, abs=1e-5)
    half = stats.t.ppf(0.975, 2) * np.std([0.02, 0.02, 0.021], ddof=1) / math.sqrt(3)
    assert (rest["low"], rest["high"]) == pytest.approx((0.02033 - half, 0.02033 + half), abs=2e-5)
    assert rest["relative"] == pytest.approx(0.02033 / 0.81, abs=1e-5)
    assert at["rest", "tail items", "auc"]["difference"] == 0
    assert at["none", VALIDATION, "auc"]["mean"] == pytest.approx(0.71, abs=1e-5)  # of the last epoch
    assert at["rest", "all", "request_auc"]["request_low"] == pytest.approx(0.1, abs=1e-5)
    text = markdown("whole", lines)
    assert "0.8100 ± 0.0100" in text and "+0.0203 [" in text and "] *" in text
    assert draw(tmp_path / "a.png", lines).stat().st_size > 0


def _signed_rank_reference(differences: list[float]) -> float:
    """All 2^n ways to sign the ranks: how many have a sum as far from the middle as this one."""
    ranks = stats.rankdata(np.abs(differences))
    far = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - ranks.sum() / 2)
    sums = [
        sum(r for r, plus in zip(ranks, signs, strict=True) if plus) for signs in product((0, 1), repeat=len(ranks))
    ]
    return float(np.mean([abs(s - ranks.sum() / 2) >= far - 1e-9 for s in sums]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=7, unique=True), st.integers(0, 127))
def test_signed_rank_agrees_with_counting_all_signs(sizes: list[int], signs: int) -> None:
    differences = [size * (1.0 if signs >> i & 1 else -1.0) for i, size in enumerate(sizes)]
    assert signed_rank(differences) == pytest.approx(_signed_rank_reference(differences))
    assert signed_rank(differences) >= least_p(len(differences))


def test_five_seeds_cannot_be_sure() -> None:
    gains = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    assert signed_rank(gains[:5]) == least_p(5) == 0.0625 and signed_rank(gains) == least_p(6) == 0.03125
    assert signed_rank([0.0, 0.0]) == 1


def test_table_of_robustness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(Path("town"), tmp_path, Budget())
    monkeypatch.setattr(Workplace, "config", lambda self, tower, variant, seed, run: variant)
    monkeypatch.setattr(cells_module, "identity", lambda variant: {"of": variant.name})
    cells = [Cell(place, tower, v, seed) for tower in ("din", "twin") for v in (NONE, HGIT) for seed in range(6)]
    gains = [0.01, 0.03, 0.02, 0.06, 0.04, 0.05]
    for cell in cells:
        if cell.tower == "din" or cell.seed < 2:
            _keep(cell, 0.8 + (gains[cell.seed] if cell.variant is HGIT else 0.0), 0.7, [0.5])
    lines = robust_lines(cells)
    at = {(x["tower"], x["variant"]): x for x in lines}
    din, twin = at["din", "hgit"], at["twin", "hgit"]
    assert (din["seeds"], din["p"], din["median"], din["iqr"]) == (6, 0.03125, 0.835, 0.025)
    low, high = stats.ttest_1samp([0.8 + x for x in gains], 0).confidence_interval(0.95)
    assert (din["mean_low"], din["mean_high"]) == pytest.approx((low, high), abs=1e-5)
    assert (twin["seeds"], twin["p"], at["din", "none"]["p"]) == (2, 0.5, "")
    text = robust_markdown(lines)
    assert "| din | 6 | 0.8000 ± 0.0000 | 0.8350 ± 0.0187 | [0.8154, 0.8546] | 0.8350 (0.0250) |" in text
    assert "| 0.0312 * |" in text and "| 0.5000 (not below 0.5000) |" in text


def test_what_the_data_cannot_bear_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(cell: Cell) -> bool:
        if cell.variant.name == "rest-3":
            raise ValueError("these items have category")
        ran.append(cell.variant.name)
        return True

    monkeypatch.setattr(Cell, "run", run)
    monkeypatch.setattr(Cell, "done", lambda cell: None)
    words = f"papers rest --data town --out {tmp_path} --seeds 2 --towers din --variants none rest-3 rest-4"
    monkeypatch.setattr("sys.argv", words.split())
    command.main()
    assert ran == ["none", "rest-4"] * 2
    out = capsys.readouterr().out
    assert out.count("left out: town din rest-3 (these items have category)") == 1
    assert "6 of 6 cells are missing" in out


def test_cell_of_other_settings_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workplace, "config", lambda self, tower, variant, seed, run: variant)
    monkeypatch.setattr(cells_module, "identity", lambda variant: {"of": variant.name})
    cell = Cell(Workplace(Path("town"), tmp_path, Budget()), "din", REST, 0)
    assert cell.done() is None
    _keep(cell, 0.8, 0.7, [0.5])
    assert cell.done() is not None
    monkeypatch.setattr(cells_module, "identity", lambda variant: {"of": "something else"})
    assert cell.done() is None


def test_younger_settings_at_their_defaults_change_nothing() -> None:
    wanted = {"epochs": 1, "ranker": {"tower": "din", "rest": {"enabled": True, "weight": 0.01}}}
    assert fits(wanted, wanted)
    older = {"epochs": 1, "ranker": {"tower": "din", "rest": {"enabled": True}}}
    assert fits(older, wanted)
    assert not fits(older, {"epochs": 1, "ranker": {"tower": "din", "rest": {"enabled": True, "weight": 1.0}}})
    off, other = ({"ranker": {"rest": {"enabled": False, "weight": w}, "akt": {"prefix": 1}}} for w in (0.01, 1.0))
    assert fits(off, other) and off["ranker"]["rest"]["weight"] == 0.01
    other["ranker"]["akt"]["prefix"] = 2
    assert not fits(off, other)
    assert not fits(wanted, {**wanted, "epochs": 2})
    assert not fits({**wanted, "gone": 1}, wanted)


def test_rule_over_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workplace, "config", lambda self, tower, variant, seed, run: variant)
    monkeypatch.setattr(cells_module, "identity", lambda variant: {"of": variant.name})
    monkeypatch.setattr(Workplace, "prepared", lambda self: self.data)
    variances = {"low": 0.1, "even": 0.2, "more": 0.3, "most": 0.6}
    monkeypatch.setattr(rule, "item_variance", lambda data: ItemVariance(variances[data.name], 0.01, 1000))
    gains = {"low": -0.001, "even": 0.001, "more": 0.002, "most": 0.006}
    cells = [
        Cell(Workplace(Path(name), tmp_path / name, Budget()), "twin", variant, 0)
        for name in variances
        for variant in TABLES["rule"]["twin"]
    ]
    for cell in cells:
        if cell.variant.name != "rest-4":  # its cells are missing
            _keep(cell, 0.8 + (gains[cell.place.data.name] if cell.variant is not NONE else 0), 0.7, [0.5])
    lines = rule.rule_lines(cells)
    assert {(x["dataset"], x["variance"]) for x in lines} == set(variances.items())
    text = rule.rule_markdown(lines).splitlines()
    assert [row.split(" | ")[0] for row in text[2:6]] == [f"| {name}" for name in variances]  # by their variance
    assert "| most | 0.60 ± 0.01 | 1 | 0.8000 | +0.0060 |" in text[5]
    over = paired_t([0.002, 0.006])
    assert text[-2] == f"| variance from 0.25 on | 2 | +0.0040 [{over.low:+.4f}, {over.high:+.4f}] |"
    assert text[-1].startswith("| below 0.25 | 2 | +0.0000 [")
    assert rule.draw_rule(tmp_path / "rule.png", lines).stat().st_size > 0


def test_versions_of_a_dataset(tmp_path: Path) -> None:
    simulate(SimulateConfig(out=tmp_path / "raw", items=50, users=40, requests=300, cities=1))
    version(tmp_path / "raw", tmp_path / "out", ["brand"], clicks=True)
    whole, rows = (pq.read_table(tmp_path / name / "interactions.parquet") for name in ("raw", "out"))
    assert rows.num_rows == pc.sum(whole["label"]).as_py() > 0 and set(rows["label"].to_pylist()) == {1}
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert "brand" not in items.column_names and "category" in items.column_names
    prepared = prepare(PrepareConfig(input=tmp_path / "out", out=tmp_path / "prepared"))
    assert read_manifest(prepared, "prepared")["source"] == "check-ins"
