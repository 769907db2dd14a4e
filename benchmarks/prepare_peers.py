"""The job of ``prepare`` on impressions as one would write it in Polars or in DuckDB, for ``bench_prepare.py``.

    PYTHON prepare_peers.py polars|duckdb RAW OUT        # PYTHON has polars or duckdb; placerank isn't needed

Rows of items, the split by time, the vocabulary of users, requests with their candidates, earlier visits, and the last
50 positives before each request with the hours since; a row a request, as Parquet with zstd at level 1. None of
``prepare``'s checks, no catalog, no summary. Prints requests, candidates, positives, and the sums of visits and of the
lengths of histories, which are those of ``prepare``.
"""

import sys
from pathlib import Path

LONGEST, LEAST, VALID, TEST = 50, 2, 0.1, 0.1
FILES = {"train": "time < {valid}", "valid": "time >= {valid} AND time < {test}", "test": "time >= {test}"}


def with_polars(raw: Path, out: Path) -> list[int]:
    import polars as pl  # type: ignore[import-not-found]

    items = pl.read_parquet(raw / "items.parquet", columns=["item_id"]).sort("item_id").with_row_index("item", 1)
    files = pl.scan_parquet(raw / "interactions" / "*.parquet")
    users = files.select(pl.col("user_id").unique().sort()).collect().with_row_index("user")
    rows = (
        files.join(items.lazy(), on="item_id")
        .join(users.lazy(), on="user_id")
        .drop("item_id", "user_id")
        .rename({"timestamp": "time"})
        .with_columns(pl.col("user_lat", "user_lon").cast(pl.Float32))
        .collect()
        .sort("user", "time", "item")
        .with_row_index("row")
    )
    times = rows["time"].sort()
    valid, test = (int(times[round(len(times) * (1 - share)) - 1]) + 1 for share in (VALID + TEST, TEST))
    known = rows.filter((pl.col("time") < valid) & (pl.col("label") == 1)).group_by("user").len()
    known = known.filter(pl.col("len") >= LEAST).select("user").sort("user").with_row_index("user_row", 1)
    pair = (pl.col("user").cast(pl.UInt64) * len(items) + pl.col("item")).alias("pair")
    chosen = rows.filter(pl.col("label") == 1).select(pair, pl.col("time").alias("then"))
    earlier = rows.select("row", "time", pair).join(chosen, on="pair").filter(pl.col("then") < pl.col("time"))
    rows = rows.join(earlier.group_by("row").len("visits"), on="row", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("visits").fill_null(0))
    positives = rows.filter(pl.col("label") == 1).select("user", "time", "item").with_row_index("at")
    first = positives.group_by("user").agg(pl.col("at").min().alias("first"))
    latest = positives.group_by("user", "time").agg((pl.col("at").max() + 1).alias("end")).sort("user", "time")
    requests = rows.group_by("user", "time", maintain_order=True).agg(
        pl.col("user_lat", "user_lon").first(),
        "item",
        "label",
        "visits",
    )
    requests = requests.sort("time").join_asof(
        latest.sort("time"), on="time", by="user", strategy="backward", allow_exact_matches=False
    )
    requests = requests.join(first, on="user", how="left").join(known, on="user", how="left")
    start = pl.max_horizontal(pl.col("first").cast(pl.Int64), pl.col("end").cast(pl.Int64) - LONGEST)
    requests = requests.with_columns(
        pl.when(pl.col("end").is_null()).then(0).otherwise(start).alias("start"), pl.col("end").fill_null(0)
    ).with_row_index("request")
    visited = requests.filter(pl.col("end") > pl.col("start")).select(
        "request", pl.col("time").alias("now"), pl.int_ranges("start", "end").alias("at")
    )
    visited = visited.explode("at").with_columns(pl.col("at").cast(pl.UInt32)).join(positives, on="at", how="left")
    visited = visited.group_by("request", maintain_order=True).agg(
        pl.col("item").alias("history"),
        ((pl.col("now") - pl.col("time")) / 3600).cast(pl.Float32).alias("history_hours"),
    )
    requests = requests.join(visited, on="request", how="left").drop("first", "start", "end")
    requests = requests.with_columns(pl.col("user_row").fill_null(0))
    for name, part in (
        ("train", requests.filter(pl.col("time") < valid).sample(fraction=1, shuffle=True, seed=0)),
        ("valid", requests.filter((pl.col("time") >= valid) & (pl.col("time") < test))),
        ("test", requests.filter(pl.col("time") >= test)),
    ):
        part.drop("user").write_parquet(out / f"{name}.parquet", compression="zstd", compression_level=1)
    return [
        len(requests),
        len(rows),
        int(rows["label"].sum()),
        int(rows["visits"].sum()),
        int(visited["history"].list.len().sum()),
    ]


def with_duckdb(raw: Path, out: Path) -> list[int]:
    import duckdb  # type: ignore[import-not-found]

    sql = duckdb.connect(str(out / "duckdb"))
    sql.execute("SET threads = 2; SET preserve_insertion_order = false")
    sql.execute(f"""
        CREATE TABLE items AS SELECT item_id, row_number() OVER (ORDER BY item_id)::INTEGER AS item
        FROM '{raw}/items.parquet';
        CREATE TABLE rows AS SELECT user_id, timestamp AS time, item, label, user_lat::FLOAT AS lat,
        user_lon::FLOAT AS lon FROM '{raw}/interactions/*.parquet' JOIN items USING (item_id)
    """)
    cuts = sql.execute(f"SELECT quantile_disc(time, [{1 - VALID - TEST}, {1 - TEST}]) FROM rows").fetchone()
    assert cuts is not None
    valid, test = (int(cut) + 1 for cut in cuts[0])
    sql.execute(f"""
        CREATE TABLE known AS SELECT user_id, row_number() OVER (ORDER BY user_id)::INTEGER AS user_row FROM (
            SELECT user_id FROM rows WHERE label = 1 AND time < {valid} GROUP BY user_id HAVING count(*) >= {LEAST});
        CREATE TABLE candidates AS SELECT *, coalesce(sum(label) OVER (
            PARTITION BY user_id, item ORDER BY time RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::INTEGER
            AS visits FROM rows;
        CREATE TABLE requests AS SELECT user_id, time, any_value(lat) AS lat, any_value(lon) AS lon,
            list(item) AS item, list(label) AS label, list(visits) AS visits,
            list(item) FILTER (label = 1) AS chosen
            FROM candidates GROUP BY user_id, time;
        CREATE TABLE histories AS SELECT user_id, time,
            flatten(list(chosen) OVER w) AS history,
            flatten(list(list_transform(chosen, lambda x: time)) OVER w) AS at
            FROM requests WINDOW w AS (
                PARTITION BY user_id ORDER BY time RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING);
        CREATE TABLE samples AS SELECT coalesce(user_row, 0) AS user_row, time, lat, lon, item, label, visits,
            h.history[-{LONGEST}:] AS history,
            list_transform(h.at[-{LONGEST}:], lambda x: ((r.time - x) / 3600)::FLOAT) AS history_hours
            FROM requests r JOIN histories h USING (user_id, time) LEFT JOIN known USING (user_id)
    """)
    for name, where in FILES.items():
        order = "ORDER BY random()" if name == "train" else ""
        sql.execute(
            f"COPY (SELECT * FROM samples WHERE {where.format(valid=valid, test=test)} {order}) "
            f"TO '{out}/{name}.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
        )
    found = sql.execute("""
        SELECT count(*), sum(len(item)), sum(list_sum(label)), sum(list_sum(visits)), coalesce(sum(len(history)), 0)
        FROM samples""").fetchone()
    assert found is not None
    return [int(x) for x in found]


if __name__ == "__main__":
    peer, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    target.mkdir(parents=True)
    print(*{"polars": with_polars, "duckdb": with_duckdb}[peer](source, target))
