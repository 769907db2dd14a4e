"""RecLLM-Adapter on real data: teacher, student and what they lose without parts, beside counting; speed and memory.

    python -m placerank.benchmarks.bench_adapter --data DATASETS/foursquare_nyc --save

For each seed three runs of ``placerank adapt``: teacher and distilled student; a student alone; a student alone without
cross-attention. Each, and a student before training, is asked "where to next" at the same test visits: Recall@10 (one
place was visited, so it is Hit@10) and NDCG@10 among all places and among those within reach, beside the floors of
``evaluation/floors.py``. Then of the distilled student: reasons of visited places, every one read by the checker, and
what it writes where nothing constrains it; intents of questions in words that were not trained on; and what share of a
list is of the category that the question asks for. With ``--ratios`` teacher and student answer the same requests in
turn, each in a process of its own for memory, and the reasons of whole lists are read; with ``--larger`` so do two of
larger sizes with random weights, 16 to 1 as in the mind map.
Differences are seed by seed, with Student's 95 % interval; floors have no seed.
What is done is kept in ``--out`` and not done again. ``--save`` writes results/adapter.csv.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.results_file import save
from placerank.data.batches.sequences import SequenceBatch
from placerank.data.manifest import write_json
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.floors import Floors, transitions
from placerank.evaluation.lists import METRICS, Ways, chosen
from placerank.evaluation.paired import paired_t
from placerank.rankers.adapter.advisor import Advisor, save_advisor
from placerank.rankers.adapter.config import AdapterConfig, LanguageConfig
from placerank.rankers.adapter.facts import reference, sentences
from placerank.rankers.adapter.language import blocks_of, make_language
from placerank.rankers.adapter.model import RecAdapter
from placerank.rankers.adapter.queries import HELD_OUT, INTENTS, NEXT, WHY, line
from placerank.rankers.adapter.sentences import choose, free
from placerank.rankers.adapter.world import World
from placerank.training.adapt import adapted, all_scores, trained, world_of
from placerank.training.settings import AdaptConfig

BATCH = 512
VARIANTS: dict[str, dict[str, Any]] = {
    "distilled": {},
    "alone": {"distillation_weight": 0.0},
    "alone, no cross-attention": {"distillation_weight": 0.0, "adapter": AdapterConfig(cross_attention=False)},
}
LARGER = {
    "teacher": LanguageConfig(columns=512, layers=8, heads=8, hidden=1344),
    "student": LanguageConfig(columns=192, layers=4, heads=4, hidden=480),
}
AGAINST = {
    "student": ("mix", "counter", "teacher", "student alone", "student before training"),
    "student alone": ("mix", "student alone, no cross-attention"),
}
Line = dict[str, Any]


def config_of(prepared: Path, out: Path, variant: str, seed: int, steps: int) -> AdaptConfig:
    run = out / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
    return AdaptConfig(
        data=prepared, run=run, steps=steps, seed=seed, resume=True, checkpoint_every=100, **VARIANTS[variant]
    )


def tests(world: World, wanted: Tensor) -> Iterator[SequenceBatch]:
    """The wanted test visits, bool [N], as batches of these alone."""
    of_target = ("stretch", "seen", "target", "target_time", "lat", "lon", "target_offset", "visits", "request")
    for batch, here in zip(world.loader("test", BATCH, 0, shuffle=False), wanted.split(BATCH), strict=True):
        if here.any():
            picked: dict[str, Any] = {name: getattr(batch, name)[here] for name in of_target}
            yield replace(batch, **picked, valid=int(here.sum()))


def gains(ways: Ways, scores: Tensor, batch: SequenceBatch) -> dict[str, Tensor]:
    """Recall@10 and NDCG@10 by way: [B, 2]."""
    own = [METRICS.index("hit@10"), METRICS.index("ndcg@10")]
    found = ways.standings(scores, batch)
    return {way: found[way].gains()[:, own] for way in ("all", "reach")}


def lists(name: str, seed: int | None, parts: dict[str, list[Tensor]]) -> list[Line]:
    lines = []
    for way, some in parts.items():
        values = torch.cat(some)
        values = values[~values[:, 0].isnan()]
        mean, error = values.mean(0).tolist(), (values.std(0) / len(values) ** 0.5).tolist()
        for at, metric in enumerate(("recall@10", "ndcg@10")):
            lines.append(
                {"what": "lists", "who": name, "seed": seed, "measure": f"{metric}, {way}", "value": mean[at]}
                | {"standard_error": error[at], "of": len(values)}
            )
    return lines


def floors(world: World, ways: Ways, items: ItemFacts, wanted: Tensor) -> list[Line]:
    made = Floors(items, transitions(world.prepared, len(items)))
    made.fit(world.prepared)
    parts: dict[str, dict[str, list[Tensor]]] = {}
    for batch in tests(world, wanted):
        for name, scores in made.scores(batch):
            for way, found in gains(ways, scores, batch).items():
                parts.setdefault(name, {}).setdefault(way, []).append(found)
    return [x for name, part in parts.items() for x in lists(name, None, part)]


def ranked(model: RecAdapter, world: World, ways: Ways, wanted: Tensor, name: str, seed: int) -> list[Line]:
    parts: dict[str, list[Tensor]] = {}
    for batch in tests(world, wanted):
        for way, found in gains(ways, all_scores(model, world.asking(batch)), batch).items():
            parts.setdefault(way, []).append(found)
    routed = [(text, intent) for intent, texts in HELD_OUT.items() for text in texts]
    logits = model.route([model.tokens(line(text, None)) for text, _ in routed])
    right = sum(INTENTS[i] == intent for i, (_, intent) in zip(logits.argmax(1).tolist(), routed, strict=True))
    share = {"what": "routing", "who": name, "seed": seed, "measure": "held-out questions understood"}
    return [*lists(name, seed, parts), counted(share, right, len(routed))]


def start(config: AdaptConfig, world: World) -> RecAdapter:
    """A student that was not trained: it counts."""
    torch.manual_seed(config.seed)
    language = make_language(config.student, lambda: world.tokenizer)
    return RecAdapter(*language, config.adapter, world.places).eval().requires_grad_(False)


def kept_step(config: AdaptConfig, role: str) -> int:
    """The step of the best validation, whose weights were kept."""
    told = [json.loads(x) for x in (config.run / f"{role}.jsonl").read_text().splitlines()]
    return int(max((x for x in told if x["split"] == "valid"), key=lambda x: x["ndcg@10"])["step"])


def counted(about: Line, right: float, of: int) -> Line:
    """A share and its standard error."""
    share = right / max(of, 1)
    return {**about, "value": share, "standard_error": (share * (1 - share) / max(of, 1)) ** 0.5, "of": of}


@torch.no_grad()
def said(model: RecAdapter, world: World, batches: list[SequenceBatch], seed: int) -> list[Line]:
    """Reasons of visited places: true, as the reference, and what is written freely; shares of a category asked for."""
    advisor = Advisor(model, world.catalog)
    right = {"true": 0, "as the reference": 0, "true, unconstrained": 0}
    of = {name: 0 for name in right}
    asked = {"named": 0.0, "not named": 0.0}
    visits = 0
    for batch in batches:
        a = world.asking(batch)
        history = histories(advisor.item_ids, batch)
        told, seen = model.told_of(a.q, a.target)
        ids = [model.tokens(line(WHY, s)) for s in a.q.local.tolist()]
        true = [world.true(a, i, t) for i, t in enumerate(a.target.tolist())]
        found = choose(model, ids, told, seen, [sentences(x) for x in true])
        for i, sentence in enumerate(found):
            about = advisor.item_ids[int(a.target[i])].as_py(), history[i], a.place[i], int(batch.target_time[i])
            right["true"] += advisor.checker.fault(sentence, *about, a_offset(batch, i)) is None
            right["as the reference"] += sentence == reference(true[i], world.lifts)
            of["true"] += 1
            of["as the reference"] += 1
            if i % 4 == 0:
                wild = free(model, ids[i], told[i : i + 1], seen[i : i + 1])
                right["true, unconstrained"] += advisor.checker.fault(wild, *about, a_offset(batch, i)) is None
                of["true, unconstrained"] += 1
        every = torch.arange(len(world.places)).expand(len(a.target), -1)
        paths = [world.paths[t] for t in a.target.tolist()]
        for how in asked:
            texts = [f"Find me {p[-1]}." if how == "named" and p else NEXT for p in paths]
            ids = [model.tokens(line(t, s)) for t, s in zip(texts, a.q.local.tolist(), strict=True)]
            top = model.score(a.q, ids, every)[:, 1:].topk(10).indices + 1
            for p, rows in zip(paths, top.tolist(), strict=True):
                asked[how] += sum(world.paths[r][-1:] == p[-1:] for r in rows) / 10
        visits += len(paths)
    who: Line = {"what": "reasons", "who": "student", "seed": seed}
    lines = [counted(who | {"measure": f"of visited places: {name}"}, right[name], of[name]) for name in right]
    shares = {"what": "question", "who": "student", "seed": seed}
    return lines + [
        counted(shares | {"measure": f"of the category, {how} in the question"}, asked[how], visits) for how in asked
    ]


def a_offset(batch: SequenceBatch, i: int) -> float | None:
    value = float(batch.target_offset[i])
    return None if value != value else value


def histories(item_ids: pa.Array, batch: SequenceBatch) -> list[list[tuple[Any, int]]]:
    """Raw ids and times of all visits before each."""
    ids = item_ids.take(pa.array(batch.item.numpy())).to_pylist()
    times, starts = batch.time.tolist(), batch.offsets[batch.stretch].tolist()
    spans = [range(s, s + n) for s, n in zip(starts, batch.seen.tolist(), strict=True)]
    return [[(ids[j], times[j]) for j in span] for span in spans]


def requests_of(world: World, batches: list[SequenceBatch], count: int) -> list[dict[str, Any]]:
    """Test visits of users who have been somewhere, as JSON."""
    ids, found = world.catalog["item_id"].combine_chunks(), []
    for batch in batches:
        places = zip(batch.lat.double().tolist(), batch.lon.double().tolist(), strict=True)
        for history, (lat, lon), now in zip(histories(ids, batch), places, batch.target_time.tolist(), strict=True):
            if history:
                found.append({"history": history, "place": None if lat != lat else [lat, lon], "time": now})
    return found[:: max(len(found) // count, 1)][:count]


def listed(advisor: Advisor, request: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """A list of ten within 10 km, and how many of its reasons are true."""
    history = [(item, when) for item, when in request["history"]]
    place = None if request["place"] is None else (request["place"][0], request["place"][1])
    rows = advisor.recommend(history, place, request["time"], within_km=10.0).to_pylist()
    told = [advisor.checker.fault(r["reason"], r["item_id"], history, place, request["time"]) for r in rows]
    return rows, told.count(None)


_WORKER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
from placerank.benchmarks.bench_adapter import Advisor, listed
from placerank.benchmarks.process_memory import process_memory, restart_peak
restart_peak()
before = process_memory("VmRSS")
advisor = Advisor.load(Path(sys.argv[1]))
for request in json.loads(Path(sys.argv[2]).read_text())[:3]:
    listed(advisor, request)
print(process_memory("VmHWM") - before)
"""


def peak_bytes(folder: Path, requests: Path) -> int:
    """What an advisor takes beyond what was imported, answering, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", _WORKER, str(folder), str(requests)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{folder}: {run.stderr[-2000:]}")
    return int(run.stdout.splitlines()[-1])


def ratios(folders: dict[str, Path], requests: Path, count: int, name: str) -> list[Line]:
    """Teacher and student on the same requests, in turn."""
    advisors = {who: Advisor.load(folder) for who, folder in folders.items()}
    ms: dict[str, list[float]] = {who: [] for who in folders}
    true, reasons = dict.fromkeys(folders, 0), dict.fromkeys(folders, 0)
    for number, request in enumerate(json.loads(requests.read_text())[: count + 1]):
        for who, advisor in advisors.items():
            start = time.process_time()
            rows, right = listed(advisor, request)
            if number:  # the first warms up
                ms[who].append(1000 * (time.process_time() - start))
                true[who], reasons[who] = true[who] + right, reasons[who] + len(rows)
            if who == "student" and number % 8 == 1 and rows:
                print(f"  {rows[0]['name'] or rows[0]['item_id']}: {rows[0]['reason']}")
    mib = {who: peak_bytes(folder, requests) / 2**20 for who, folder in folders.items()}
    size = {who: sum(p.numel() for p in a.model.parameters()) for who, a in advisors.items()}
    blocks = {who: sum(p.numel() for p in blocks_of(a.model.language).parameters()) for who, a in advisors.items()}
    measures: dict[str, dict[str, float]] = {
        "processor ms a list of ten with reasons": {who: float(np.median(x)) for who, x in ms.items()},
        "peak memory beyond imports, MiB": mib,
        "weights": {who: float(n) for who, n in size.items()},
        "weights of the blocks": {who: float(n) for who, n in blocks.items()},
    }
    about: Line = {"what": name, "seed": 0}
    lines: list[Line] = []
    for measure, of in measures.items():
        for who, value in {**of, "teacher / student": of["teacher"] / of["student"]}.items():
            lines.append({**about, "who": who, "measure": measure, "value": float(value), "standard_error": None})
            lines[-1]["of"] = len(ms["student"]) if measure.startswith("processor") else 1
    by_request = np.divide(ms["teacher"], ms["student"])
    for share in (5, 95):
        value = float(np.percentile(by_request, share))
        lines.append({**about, "who": "teacher / student", "measure": f"time, {share} % of requests", "value": value})
        lines[-1] |= {"standard_error": None, "of": len(by_request)}
    for who in folders:
        lines.append(
            counted({**about, "who": who, "measure": "reasons of lists that are true"}, true[who], reasons[who])
        )
    return lines


def one_seed(world: World, ways: Ways, out: Path, seed: int, steps: int, wanted: Tensor, talked: int) -> list[Line]:
    """Quality of all models of a seed; kept."""
    file = out / f"seed-{seed}.json"
    if file.exists():
        kept: list[Line] = json.loads(file.read_text())
        return kept
    first = start(config_of(world.prepared, out, "alone", seed, steps), world)
    lines = ranked(first, world, ways, wanted, "student before training", seed)
    for variant in VARIANTS:
        config = config_of(world.prepared, out, variant, seed, steps)
        config.run.mkdir(exist_ok=True)
        adapted(config, world)  # at once where it was done before
        roles = ("teacher", "student") if variant == "distilled" else ("student",)
        models = {role: trained(config, world, role, None) for role in roles}
        for role, model in models.items():
            name = role if variant == "distilled" else f"student {variant}"
            lines += ranked(model, world, ways, wanted, name, seed)
            step: Line = {"what": "training", "who": name, "seed": seed, "measure": "step that was kept"}
            lines.append(step | {"value": float(kept_step(config, role)), "standard_error": None, "of": steps})
        if variant == "distilled":
            batches = list(tests(world, wanted))
            lines += said(models["student"], world, batches[:: max(int(wanted.sum()) // talked, 1)], seed)
            for role, model in models.items():
                save_advisor(out / f"{role}-advisor-{seed}", model, config.adapter, world.catalog, config, {}, steps)
            write_json(out / "requests.json", requests_of(world, batches, 41))
    write_json(file, lines)
    return lines


def kept_ratios(out: Path, seed: int, count: int) -> list[Line]:
    """Of a seed's teacher and student; kept."""
    file = out / "ratios.json"
    if not file.exists():
        folders = {role: out / f"{role}-advisor-{seed}" for role in ("teacher", "student")}
        write_json(file, ratios(folders, out / "requests.json", count, "ratio"))
    kept: list[Line] = json.loads(file.read_text())
    return kept


def larger(world: World, out: Path) -> list[Line]:
    """The same ratios of larger sizes, whose weights are random; kept."""
    file = out / "larger.json"
    if not file.exists():
        folders = {}
        for role, language in LARGER.items():
            torch.manual_seed(0)
            model = RecAdapter(*make_language(language, lambda: world.tokenizer), AdapterConfig(), world.places).eval()
            folders[role] = out / f"larger-{role}"
            save_advisor(folders[role], model, AdapterConfig(), world.catalog, language, {}, 0)
        write_json(file, ratios(folders, out / "requests.json", 5, "ratio, larger sizes, random weights"))
    kept: list[Line] = json.loads(file.read_text())
    return kept


def markdown(lines: list[Line]) -> str:
    """A row for each who and measure: the mean over seeds and the spread."""
    out = ["| | | mean | least | most | of |", "|---|---|---|---|---|---|"]
    keys = dict.fromkeys((x["what"], x["who"], x["measure"]) for x in lines)
    for key in keys:
        some = [x for x in lines if (x["what"], x["who"], x["measure"]) == key]
        values = [x["value"] for x in some]
        cells = [f"{np.mean(values):.4g}", f"{min(values):.4g}", f"{max(values):.4g}", str(some[0]["of"])]
        out.append(f"| {key[0]}: {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def differences(lines: list[Line]) -> str:
    """A row for each pair that is to be told apart and measure of its lists."""
    out = ["| lists of | less those of | | difference | seeds |", "|---|---|---|---|---|"]
    found: dict[tuple[str, str], dict[int | None, float]] = {}
    for x in lines:
        if x["what"] == "lists":
            found.setdefault((x["who"], x["measure"]), {})[x["seed"]] = x["value"]
    for who, others in AGAINST.items():
        measures = [measure for name, measure in found if name == who]
        for other, measure in product(others, measures):
            mine, base = found[who, measure], found[other, measure]
            about = paired_t([value - base.get(seed, base.get(None, math.nan)) for seed, value in mine.items()])
            told = f"{about.mean:+.4f} [{about.low:+.4f}, {about.high:+.4f}]"
            out.append(f"| {who} | {other} | {measure} | {told} | {len(mine)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_adapter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/adapter"), help="where what is done is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=100, help="of each training (default: %(default)s)")
    parser.add_argument("--targets", type=int, default=500, help="test visits, drawn once (default: %(default)s)")
    parser.add_argument(
        "--talked", type=int, default=100, help="of these, whose reasons are read (default: %(default)s)"
    )
    parser.add_argument("--ratios", action="store_true", help="speed and memory, of the first seed")
    parser.add_argument("--larger", action="store_true", help="the ratios of larger sizes, too")
    parser.add_argument("--save", action="store_true", help="write results/adapter.csv")
    args = parser.parse_args()

    torch.set_num_threads(1)
    place = Workplace(args.data, args.out / args.data.name, Budget())
    prepared, out = place.prepared(), place.folder
    world, items = world_of(prepared, AdapterConfig().history), ItemFacts.load(prepared)
    ways = Ways(items, 10.0)
    wanted = torch.from_numpy(chosen(world.loader("test", BATCH, 0, shuffle=False).rows, args.targets))
    kept = out / f"floors-{args.targets}.json"
    if not kept.exists():
        write_json(kept, floors(world, ways, items, wanted))
    lines: list[Line] = json.loads(kept.read_text())
    for seed in args.seeds:
        lines += one_seed(world, ways, out, seed, args.steps, wanted, args.talked)
        print(f"seed {seed} is done", flush=True)
    if args.ratios:
        lines += kept_ratios(out, args.seeds[0], 40)
    if args.larger:
        lines += larger(world, out)
    about = {"dataset": args.data.name, "steps": args.steps, "targets": args.targets}
    print(markdown(lines), differences(lines), sep="\n\n")
    if args.save:
        print(save("adapter.csv", [about | x for x in lines]))


if __name__ == "__main__":
    main()
