"""The folder that answers: places within reach, each with a reason, and why a place; by raw ids.

It holds ``model.safetensors``, ``language/`` (config and tokenizer as Hugging Face has them), ``adapter.json``,
``catalog.parquet`` and a manifest, and needs nothing of where it was trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch import Tensor

from ...data.arrays import one_array
from ...data.batches.sequences import SequenceBatch
from ...data.manifest import read_manifest, whole_folder, write_json, write_manifest
from ...data.plain import from_plain, read_json
from ...kernels.haversine import unit_vectors, unit_vectors_km
from ..generative.reach import minute_of_week
from ..rank_requests import check_years, seconds
from .checker import Checker
from .config import AdapterConfig
from .facts import Known, clauses, sentences
from .inputs import Places, Requests
from .language import load_language, save_language
from .model import RecAdapter
from .queries import INTENTS, NEXT, WHY, line
from .sentences import choose

MODEL, LANGUAGE, ADAPTER, CATALOG = "model.safetensors", "language", "adapter.json", "catalog.parquet"
_SHORTEST = 3  # letters of a name that is looked for in a question
_AT_ONCE = 4096  # candidates


@dataclass(frozen=True)
class Answer:
    """What was understood, and the places: all of a list, or the one that was asked about.

    Attributes:
        intent: of ``queries.INTENTS``.
        places: item_id, name, km (NaN where a place is unknown), score, reason; best first.
    """

    intent: str
    places: pa.Table


@dataclass(frozen=True)
class _Request:
    """A request as the model takes it, and as facts and checks do."""

    q: Requests
    rows: list[int]
    history: list[tuple[Any, int]]
    place: tuple[float, float] | None
    time: int
    utc_offset: float | None
    minute: int | None


def save_advisor(
    folder: Path,
    model: RecAdapter,
    config: AdapterConfig,
    catalog: pa.Table,
    settings: Any,
    made_from: dict[str, str],
    step: int,
) -> None:
    """Write the folder; one that placerank wrote is replaced.

    Args:
        folder: its name.
        model, config: the student, and the settings of its adapter.
        catalog: of ``world.read_catalog``.
        settings: of the step, for the manifest.
        made_from, step: of what, and after how many steps.
    """
    with whole_folder(folder, overwrite=True) as out:
        save_model(model, str(out / MODEL))
        save_language(out / LANGUAGE, model.language, model.tokenizer)
        write_json(out / ADAPTER, config)
        pq.write_table(catalog, out / CATALOG, compression="zstd")
        write_manifest(out, "advisor", settings, made_from, step=step)


class Advisor:
    """Answers requests; ``load`` makes one.

    Args:
        model: the student, in eval mode.
        catalog: of the places it knows.
    """

    def __init__(self, model: RecAdapter, catalog: pa.Table) -> None:
        self.model, self.known, self.checker = model, Known.of_catalog(catalog), Checker(catalog)
        self.item_ids = one_array(catalog["item_id"])
        self.names = catalog["name"].cast(pa.string()).to_pylist()

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> "Advisor":
        """Of a folder that ``placerank adapt`` made.

        Args:
            folder: the advisor's, or the run's that has it.
            verify: compare each file with the manifest.

        Raises:
            FileNotFoundError, ValueError: no such folder, or a damaged one.
        """
        if (folder / "advisor").is_dir():
            folder = folder / "advisor"
        read_manifest(folder, "advisor", verify=verify)
        again = "make the folder again with placerank adapt"
        config = from_plain(AdapterConfig, read_json(folder / ADAPTER, dict[str, Any], again), str(folder / ADAPTER))
        catalog = pq.read_table(folder / CATALOG)
        model = RecAdapter(*load_language(folder / LANGUAGE), config, Places.of_catalog(catalog))
        load_model(model, folder / MODEL)
        return cls(model.eval().requires_grad_(False), catalog)

    # --- what is asked ----------------------------------------------------------------------------------------------

    def intent(self, text: str) -> str:
        """Which of ``queries.INTENTS`` a question has."""
        with torch.no_grad():
            return INTENTS[int(self.model.route([self.model.tokens(line(text, None))]).argmax())]

    def answer(
        self,
        text: str,
        history: Sequence[tuple[Any, int | datetime]],
        place: tuple[float, float] | None,
        time: int | datetime,
        *,
        within_km: float = 3.0,
        k: int = 10,
        utc_offset: float | None = None,
    ) -> Answer:
        """Routes a question: a list of places, or why a place.

        Why is told of the place that the question names, the nearest where several have the name, and else of the best
        one within reach.

        Args:
            text: the question.
            history, place, time, within_km, k, utc_offset: as for ``recommend``.

        Raises:
            ValueError: as ``recommend``.
        """
        if self.intent(text) == "recommend":
            return Answer("recommend", self.recommend(history, place, time, within_km, k, text, utc_offset))
        item = self._named(text, place)
        if item is None:
            best = self.recommend(history, place, time, within_km, 1, NEXT, utc_offset)
            if not len(best):
                return Answer("explain", best)
            item = best["item_id"][0].as_py()
        return Answer("explain", self.explain(item, history, place, time, text, utc_offset))

    @torch.no_grad()
    def recommend(
        self,
        history: Sequence[tuple[Any, int | datetime]],
        place: tuple[float, float] | None,
        time: int | datetime,
        within_km: float = 3.0,
        k: int = 10,
        text: str = NEXT,
        utc_offset: float | None = None,
    ) -> pa.Table:
        """The best places within reach, each with a reason.

        Args:
            history: all known visits, (raw id, unix seconds or a time with its zone), in any order; those at ``time``
                or later are not looked at. Unknown places count as visits of no place.
            place: latitude and longitude in degrees; None: unknown, reach is then from the last visit.
            time: of the request.
            within_km: the reach; inf: all places.
            k: places, at most.
            text: the question.
            utc_offset: minutes east of UTC there and then. Without it nothing is said of opening hours, and the hour in
                the question is solar time.

        Returns:
            As ``Answer.places``; empty where nothing is within reach.

        Raises:
            ValueError: a place that is none, a reach or k that is not positive, or a reach from nowhere.
        """
        if not within_km > 0 or k < 1:
            raise ValueError(f"within_km={within_km}, k={k}: expected a reach above 0 km and 1 place or more")
        request = self._request(history, place, time, utc_offset)
        km = unit_vectors_km(request.q.point, self.model.places.point)
        rows = torch.arange(1, len(km))
        if not math.isinf(within_km):
            if bool(request.q.point.isnan().any()):
                raise ValueError("place: got none, and no last visit to go by; give a place, or within_km=inf")
            rows = rows[km[1:] <= within_km]
        rows = rows[[i is not None for i in self.item_ids.take(pa.array(rows.numpy())).to_pylist()]]
        if not len(rows):
            return self._table(torch.zeros(0, dtype=torch.int64), km, torch.zeros(0), [])
        ids = [self.model.tokens(line(text, int(request.q.local[0])))]
        visits = self.model.visits(request.q)
        scores = torch.cat([self.model.score(request.q, ids, c[None], visits)[0] for c in rows.split(_AT_ONCE)])
        top = scores.topk(min(k, len(scores)))
        found = rows[top.indices]
        return self._table(found, km, top.values, self._reasons(request, found, WHY, visits))

    @torch.no_grad()
    def explain(
        self,
        item: Any,
        history: Sequence[tuple[Any, int | datetime]],
        place: tuple[float, float] | None,
        time: int | datetime,
        text: str = WHY,
        utc_offset: float | None = None,
    ) -> pa.Table:
        """Why this place: a table as of ``recommend``, with its row alone.

        Raises:
            ValueError: an id that is not in the catalog, or a place that is none.
        """
        row = self._rows([item], "item")[0]
        if not row:
            raise ValueError(f"item: got {item!r}, expected the id of a place of the catalog")
        request = self._request(history, place, time, utc_offset)
        rows, km = torch.tensor([row]), unit_vectors_km(request.q.point, self.model.places.point)
        visits = self.model.visits(request.q)
        ids = [self.model.tokens(line(NEXT, int(request.q.local[0])))]
        scores = self.model.score(request.q, ids, rows[None], visits)[0]
        return self._table(rows, km, scores, self._reasons(request, rows, text, visits))

    # --- how it is answered -----------------------------------------------------------------------------------------

    def _reasons(self, request: _Request, rows: Tensor, text: str, visits: Tensor) -> list[str]:
        """A sentence of each place, chosen among what is true and checked."""
        true = [sentences(clauses(self.known, r, request.rows, request.place, request.minute)) for r in rows.tolist()]
        many = request.q.some(torch.zeros(len(rows), dtype=torch.int64))
        told, seen = self.model.told_of(many, rows, visits.expand(len(rows), -1, -1))
        ids = [self.model.tokens(line(text, int(request.q.local[0])))] * len(rows)
        found = choose(self.model, ids, told, seen, true)
        for row, said in zip(rows.tolist(), found, strict=True):
            about = self.item_ids[row].as_py(), request.history, request.place, request.time, request.utc_offset
            if wrong := self.checker.fault(said, *about):
                raise RuntimeError(f"a reason is not true, please report it: {said!r} of {about[0]!r}: {wrong}")
        return found

    def _request(
        self,
        history: Sequence[tuple[Any, int | datetime]],
        place: tuple[float, float] | None,
        time: int | datetime,
        utc_offset: float | None,
    ) -> _Request:
        now = seconds(time)
        check_years(np.array([now]), "time")
        if place is not None and not (abs(place[0]) <= 90 and abs(place[1]) <= 180):
            raise ValueError(f"place: got {place}, expected latitude and longitude in degrees")
        if utc_offset is not None and not abs(utc_offset) <= 1080:
            raise ValueError(f"utc_offset: got {utc_offset}, expected minutes east of UTC, at most 1,080")
        before = sorted(((i, seconds(t)) for i, t in history), key=lambda visit: visit[1])
        before = [visit for visit in before if visit[1] < now]
        check_years(np.array([t for _, t in before], np.int64), "history")
        rows = self._rows([i for i, _ in before], "history")
        batch = _batch(rows, np.array([t for _, t in before], np.int64), place, now, utc_offset)
        places = self.model.places
        minute = None
        if utc_offset is not None:
            minute = int(minute_of_week(torch.tensor([now + int(utc_offset * 60)])))
        q = Requests.of_batch(batch, places, self.model.config.history)
        return _Request(q, rows.tolist(), before, place, now, utc_offset, minute)

    def _rows(self, ids: list[Any], name: str) -> NDArray[np.int64]:
        """Catalog rows of raw ids, 0 for unknown ones."""
        try:
            items = pa.array(ids, self.item_ids.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise ValueError(f"{name}: expected ids of type {self.item_ids.type}, as the catalog's ({error})") from None
        rows: NDArray[np.int64] = pc.fill_null(
            pc.index_in(items, value_set=self.item_ids, skip_nulls=True), 0
        ).to_numpy(zero_copy_only=False)
        return rows.astype(np.int64)

    def _named(self, text: str, place: tuple[float, float] | None) -> Any:
        """Id of the place whose name the question has; None if none. The longest name, then the nearest, counts."""
        asked = text.lower()
        named = [(len(n), r) for r, n in enumerate(self.names) if n and len(n) >= _SHORTEST and n.lower() in asked]
        if not named:
            return None
        rows = torch.tensor([r for length, r in named if length == max(named)[0]])
        if place is not None and len(rows) > 1:
            here = unit_vectors(*(torch.tensor(x, dtype=torch.float64) for x in place))
            rows = rows[unit_vectors_km(here, self.model.places.point[rows]).nan_to_num(nan=math.inf).argsort()]
        return self.item_ids[int(rows[0])].as_py()

    def _table(self, rows: Tensor, km: Tensor, scores: Tensor, reasons: list[str]) -> pa.Table:
        index = pa.array(rows.numpy())
        return pa.table(
            {
                "item_id": self.item_ids.take(index),
                "name": pa.array([self.names[r] for r in rows.tolist()], pa.string()),
                "km": km[rows].float().numpy(),
                "score": scores.float().numpy(),
                "reason": pa.array(reasons, pa.string()),
            }
        )


def _batch(
    rows: NDArray[np.int64],
    times: NDArray[np.int64],
    place: tuple[float, float] | None,
    now: int,
    utc_offset: float | None,
) -> SequenceBatch:
    """One request as a batch whose target nobody knows."""
    lat, lon = place or (math.nan, math.nan)
    offset = math.nan if utc_offset is None else utc_offset
    one = torch.zeros(1, dtype=torch.int64)
    return SequenceBatch(
        offsets=torch.tensor([0, len(rows)]),
        item=torch.from_numpy(rows),
        time=torch.from_numpy(times),
        utc_offset=torch.full((len(rows),), offset),
        user=one,
        user_index=one,
        stretch=one,
        seen=torch.tensor([len(rows)]),
        target=one,
        target_time=torch.tensor([now]),
        lat=torch.tensor([lat], dtype=torch.float64),
        lon=torch.tensor([lon], dtype=torch.float64),
        target_offset=torch.tensor([offset]),
        visits=one.int(),
        request=one,
        valid=1,
    )
