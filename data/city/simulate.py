"""Step ``simulate``: a raw folder of a simulated city, where the true probability of every click is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...reports.progress import tracked
from ..manifest import whole_folder, write_manifest
from .delivery import Delivery
from .settings import SimulateConfig
from .storefronts import write_pictures
from .words import COARSE, FINE_PER_COARSE, LEAVES
from .world import (
    FAVOURITES,
    Districts,
    People,
    Places,
    demand,
    draw_column,
    flat_km,
    items_table,
    make_districts,
    make_people,
    make_places,
    scatter,
    users_table,
)

START = 1_704_067_200  # 2024-01-01 UTC, a Monday
DAY = 86_400
BLOCK = 8_192  # requests of one random stream and one row group; part of what a seed means
# Share of requests by hour of the day (0 to 23) and by day of the week (Monday first).
HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 9, 9, 11, 13, 12, 10, 10, 11, 13, 15, 15, 13, 11, 8, 4], float)
WEEKDAYS = np.array([9, 9, 9, 10, 12, 14, 11], float)

# Weights of the click's logit. Taste decides most; distance and quality alone are far from enough.
FAVOURITE, SIBLING = 3.6, 0.6  # a favourite leaf category; another leaf of the same coarse one
HABIT = 1.0
DISTANCE = 2.0
PRICE = 0.35
QUALITY = 0.65
STYLE = 0.3
HOUR = 0.3
# Of an order after a click. What brings a click brings an order too, but less; price and quality decide more.
ORDER_FAVOURITE, ORDER_HABIT = 1.2, 0.8
ORDER_DISTANCE, ORDER_PRICE, ORDER_QUALITY = 0.8, 0.7, 0.9
# Logarithm of an order's amount: that of the place's price, more from those who pay more, and a basket that varies.
SPENDING, BASKET = 0.2, 0.4


@dataclass(kw_only=True)
class _Shown:
    """Impressions of one block, one row each, before clicks."""

    request: np.ndarray
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    km: np.ndarray
    logit: np.ndarray
    own: dict[str, Any]


class _City:
    """Districts, places and people with the tables that drawing requests needs."""

    def __init__(self, config: SimulateConfig) -> None:
        self.config = config
        self.end = START + config.days * DAY
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
        self.districts: Districts = make_districts(rng, config.country, config.cities, config.items, config.countryside)
        self.places: Places = make_places(rng, self.districts, config.items, START, self.end)
        self.people: People = make_people(rng, self.districts, self.places, config.users, START, self.end)
        self.rng = rng
        self.attraction = np.concatenate([[0.0], np.cumsum(self.places.attraction)])
        self.activity = np.cumsum(self.people.activity)
        self.veterans = np.flatnonzero(self.people.joined == 0)
        self.veteran_activity = np.cumsum(self.people.activity[self.veterans])
        self.demand = demand()
        week = np.tile(HOURS, 7) * np.repeat(WEEKDAYS, 24)
        hours = np.tile(week, -(-config.days // 7))[: config.days * 24]
        self.rhythm = np.concatenate([[0.0], np.cumsum(hours) / hours.sum()])
        self.intercept = 0.0
        self.delivery = Delivery(config.seed, config.items, config.users) if config.delivery else None
        self.order_intercept = 0.0

    def shown(self, rng: np.random.Generator, first: int, n: int) -> _Shown:
        """Requests ``first`` to ``first + n`` (in the order of time) and what each shows."""
        config, places, people, districts = self.config, self.places, self.people, self.districts
        shape = (n, config.candidates)
        # One request per stratum of the rhythm's distribution: chronological across blocks, whatever the block.
        level = (np.arange(first, first + n) + rng.random(n)) / config.requests
        time = START + (np.interp(level, self.rhythm, np.arange(len(self.rhythm))) * 3600).astype(np.int64)
        user = np.searchsorted(self.activity, rng.random(n) * self.activity[-1], side="right")
        among = np.searchsorted(self.veteran_activity, rng.random(n) * self.veteran_activity[-1], side="right")
        user = np.where(people.joined[user] <= time, user, self.veterans[among])

        at = np.searchsorted([0.5, 0.8], rng.random(n), side="right")  # home, work, centre
        lat, lon = scatter(rng, people.lat[user, at], people.lon[user, at], 0.3)
        here = people.district[user, at]

        seen = draw_column(districts.near_share, np.repeat(here[:, None], config.candidates, axis=1), rng.random(shape))
        there = np.take_along_axis(districts.near[here], seen, axis=1)
        favourite = np.take_along_axis(people.favourites[user], rng.integers(0, FAVOURITES, shape), axis=1)
        item = self._draw(rng, there, favourite)

        item.sort(axis=1)
        keep = np.ones(shape, bool)
        keep[:, 1:] = item[:, 1:] != item[:, :-1]
        km = flat_km(lat[:, None], lon[:, None], places.lat[item], places.lon[item])
        # The local plane is right to 0.1 %: a little less than the reach keeps the promise on the sphere.
        keep &= (km <= config.reach_km * 0.998) & (places.opened[item] <= time[:, None])
        row, _ = np.nonzero(keep)
        kept, distance = item[keep], km[keep].astype(np.float32)
        logit, own = self._logit(user, time, row, kept, distance), {}
        if self.delivery is not None:
            logit += self.delivery.effect(first + row, user[row], kept, distance)
            own = self.delivery.of_rows(first + row, kept, distance)
        return _Shown(
            request=first + row,
            user=user[row],
            item=kept,
            time=time[row],
            lat=lat[row],
            lon=lon[row],
            km=distance,
            logit=logit,
            own=own,
        )

    def _draw(self, rng: np.random.Generator, district: np.ndarray, favourite: np.ndarray) -> np.ndarray:
        """Item rows: popular ones of a district, any of it, or popular ones of a favourite leaf there."""
        leaves = len(LEAVES)
        mode = rng.random(district.shape, dtype=np.float32)
        place = rng.random(district.shape)
        low, high = self.places.bucket[district * leaves], self.places.bucket[(district + 1) * leaves]
        leaf_low = self.places.bucket[district * leaves + favourite]
        leaf_high = self.places.bucket[district * leaves + favourite + 1]
        by_taste = (mode > 0.75) & (leaf_high > leaf_low)
        low, high = np.where(by_taste, leaf_low, low), np.where(by_taste, leaf_high, high)
        evenly = low + (place * (high - low)).astype(np.int64)
        mass = self.attraction[low] + place * (self.attraction[high] - self.attraction[low])
        popular = np.searchsorted(self.attraction, mass, side="right") - 1
        item = np.where((mode > 0.45) & (mode <= 0.75), evenly, popular)
        return np.clip(item, low, np.maximum(high - 1, low)).clip(max=len(self.places.item_id) - 1)

    def _logit(
        self, user: np.ndarray, time: np.ndarray, row: np.ndarray, item: np.ndarray, km: np.ndarray
    ) -> np.ndarray:
        """Logit of each shown place but for the intercept; ``user`` and ``time`` are by request."""
        places, people = self.places, self.people
        n, every = len(user), np.arange(len(user))[:, None]
        taste = np.zeros((n, len(LEAVES)), np.float32)
        favourites = people.favourites[user]
        by_coarse = taste.reshape(n, len(COARSE), FINE_PER_COARSE)
        by_coarse[every, favourites // FINE_PER_COARSE] = SIBLING
        taste[every, favourites] = FAVOURITE * people.strength[user]
        hour = (time // 3600 + self.districts.utc_offset[self.districts.city[people.district[user, 0]]]) % 24
        taste += HOUR * np.repeat(self.demand[hour], FINE_PER_COARSE, axis=1)

        who, brand = user[row], places.brand[item]
        logit = taste[row, places.leaf[item]]
        logit += HABIT * (people.habits[who] == brand[:, None]).any(axis=1)
        logit -= DISTANCE * np.log1p(km / people.radius[who])
        logit -= PRICE * np.abs(places.dearness[item] - people.thrift[who])
        logit += QUALITY * places.quality[item]
        logit += STYLE * np.einsum("nd,nd->n", people.style[who], places.style[item])
        return logit + np.float32(self.intercept)

    def order_logit(self, who: np.ndarray, item: np.ndarray, km: np.ndarray) -> np.ndarray:
        """Logit of an order after a click, float64 [N]; all are by shown place."""
        places, people = self.places, self.people
        logit = ORDER_FAVOURITE * (people.favourites[who] == places.leaf[item][:, None]).any(axis=1).astype(np.float64)
        logit += ORDER_HABIT * (people.habits[who] == places.brand[item][:, None]).any(axis=1)
        logit -= ORDER_DISTANCE * np.log1p(km / people.radius[who])
        logit -= ORDER_PRICE * np.abs(places.dearness[item] - people.thrift[who])
        logit += ORDER_QUALITY * places.quality[item]
        return logit + self.order_intercept

    def log_amount(self, who: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Mean of the logarithm of an order's amount, float64 [N]; its deviation is ``BASKET``."""
        return self.places.log_price[item].astype(np.float64) + SPENDING * self.people.thrift[who]

    def calibrate(self) -> None:
        """Set the intercepts so that expected rates of clicks and orders over the whole period are the asked ones."""
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(1,)))
        step = max(self.config.requests // 16, 1)
        n = min(256, step)
        firsts = range(0, self.config.requests - n + 1, step)
        shown = [self.shown(rng, first, n) for first in firsts]
        logit = np.concatenate([s.logit for s in shown]).astype(np.float64)
        if not len(logit):
            raise ValueError(
                f"nothing is within reach: reach_km {self.config.reach_km} and {self.config.items} items leave no "
                "candidate; take more items or a larger reach"
            )
        self.intercept = _intercept(logit, None, self.config.click_rate)
        if self.config.orders:
            clicked = _sigmoid(logit + self.intercept)
            order = np.concatenate([self.order_logit(s.user, s.item, s.km) for s in shown])
            self.order_intercept = _intercept(order, clicked, self.config.orders)


def _intercept(logit: np.ndarray, weight: np.ndarray | None, rate: float) -> float:
    """What to add to logits so that their mean probability, by weight, is ``rate``."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if np.average(_sigmoid(logit + middle), weights=weight) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _blocks(city: _City) -> Iterator[pa.Table]:
    """Interactions, one table for each block of requests, in the order of time."""
    config = city.config
    for number, first in enumerate(range(0, config.requests, BLOCK)):
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(2, number)))
        shown = city.shown(rng, first, min(BLOCK, config.requests - first))
        probability = _sigmoid(shown.logit)
        label = (rng.random(len(probability), dtype=np.float32) < probability).astype(np.int8)
        yield pa.table(
            {
                "user_id": shown.user + 1,
                "item_id": city.places.item_id[shown.item],
                "timestamp": pa.array(shown.time).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("ms", "UTC")),
                "label": label,
                "user_lat": np.round(shown.lat, 6),
                "user_lon": np.round(shown.lon, 6),
                "request_id": shown.request,
                "probability": probability,
                **shown.own,
            }
            | (_orders(city, number, shown, label) if config.orders else {})
        )


def _with(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def _orders(city: _City, number: int, shown: _Shown, label: np.ndarray) -> dict[str, np.ndarray]:
    """Orders of a block and their amounts, 0 where there is none; clicks are those of a city without orders."""
    rng = np.random.default_rng(np.random.SeedSequence(city.config.seed, spawn_key=(3, number)))
    probability = _sigmoid(city.order_logit(shown.user, shown.item, shown.km))
    order = label * (rng.random(len(label)) < probability).astype(np.int8)
    amount = np.exp(city.log_amount(shown.user, shown.item) + BASKET * rng.normal(size=len(label)))
    return {"order": order, "gmv": order * np.maximum(np.round(amount, 2), 0.01)}


def simulate(config: SimulateConfig) -> Path:
    """Write ``items.parquet``, ``users.parquet`` and ``interactions.parquet`` (with ``probability``) to ``config.out``.

    Items and users are held in memory (about 200 bytes each); interactions stream to disk in blocks of 8,192
    requests, in the order of time. The probability is that of the Bernoulli draw that made the label, so the AUC of
    ``probability`` is the best that any ranker can reach in expectation.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is False.
        ValueError: unknown country, or too few cities in it.
    """
    with whole_folder(config.out, config.overwrite) as folder:
        city = _City(config)
        city.calibrate()
        items = items_table(city.rng, city.districts, city.places)
        users = users_table(city.districts, city.people)
        if city.delivery is not None:
            items = _with(items, city.delivery.of_items(np.argsort(city.places.item_id)))
            users = _with(users, city.delivery.of_users())
        if config.pictures:
            items = _with(items, {"image": pa.array(write_pictures(folder, city.places, config.seed))})
        pq.write_table(items, folder / "items.parquet", compression="zstd")
        pq.write_table(users, folder / "users.parquet", compression="zstd")
        rows = clicks = 0
        writer: pq.ParquetWriter | None = None
        total = -(-config.requests // BLOCK)
        for table in tracked(_blocks(city), "simulate", total, "blocks"):
            writer = writer or pq.ParquetWriter(
                folder / "interactions.parquet",
                table.schema,
                compression="zstd",
                use_dictionary=["user_id", "item_id", "timestamp", "label", "request_id", *table.schema.names[8:]],
            )
            writer.write_table(table, row_group_size=len(table))
            rows += len(table)
            clicks += int(table["label"].to_numpy().sum(dtype=np.int64))
        assert writer is not None
        writer.close()
        write_manifest(
            folder, "raw", config, rows={"items": config.items, "users": config.users, "interactions": rows},
            click_rate=clicks / rows, time=[START, city.end],
        )  # fmt: skip
    return config.out
