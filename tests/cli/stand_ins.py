"""Small files in the formats and under the names that the documentation pages use."""

import gzip
import json
import lzma
import shutil
import sqlite3
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import zstandard

EXAMPLES = Path(__file__).parents[2] / "examples"
ORDERS_YAML = """
data:
  class_path: lrec.InteractionsDataModule
  init_args: {path: orders.csv, user_column: customer, item_column: product, time_column: bought_at}
"""


def write_stand_ins(folder: Path) -> None:
    """Write files of 120 users with 12 to 69 interactions each, 60 items, September to December 2000; copy examples."""
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, folder)
    log = _log()
    names = {"user": pl.format("c_{}", "user"), "item": pl.format("SKU-{}", pl.col("item").cast(str).str.zfill(4))}
    orders = log.select(
        names["user"].alias("customer"),
        names["item"].alias("product"),
        pl.from_epoch("time").dt.to_string("iso").alias("bought_at"),
        pl.lit(9.5).alias("price"),
    )
    orders.write_csv(folder / "orders.csv")
    (folder / "orders.yaml").write_text(ORDERS_YAML)
    for name, days in (("new", 122), ("newer", 244)):  # four months later, and eight
        later = pl.col("bought_at").str.to_datetime().dt.offset_by(f"{days}d").dt.to_string("iso")
        orders.with_columns(later).write_csv(folder / f"{name}_orders.csv")
    with sqlite3.connect(folder / "shop.db") as shop:
        shop.execute("CREATE TABLE orders (customer TEXT, product TEXT, ordered_at INTEGER, returned INTEGER)")
        sold = [(f"c_{user}", f"SKU-{item:04}", time, 0) for user, item, time in log.rows()]
        shop.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", sold)
    interactions = log.select(names["user"], names["item"], "time")
    for name in ("interactions", "ml-1m"):
        interactions.write_csv(folder / f"{name}.csv")
    interactions.write_parquet(folder / "interactions.parquet")
    done = pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("buy")).otherwise(pl.lit("view"))
    interactions.with_columns(action=done).write_csv(folder / "shop.csv")
    number = pl.int_range(pl.len())
    device = pl.when(number % 4 == 0).then(pl.lit("phone")).otherwise(pl.lit("tv"))
    interactions.with_columns(device=device, price=number % 20 / 2).write_csv(folder / "rated.csv")
    films = interactions.select("item").unique(maintain_order=True)
    films.with_columns(genres=pl.lit("Drama|War"), year=1990 + number % 20).write_csv(folder / "films.csv")
    interactions.select("user").unique(maintain_order=True).with_columns(country=device).write_csv(
        folder / "people.csv"
    )
    atomic = {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
    interactions.rename(atomic).write_csv(folder / "shop.inter", separator="\t")
    histories = orders.group_by("customer", maintain_order=True).agg(pl.col("product").alias("items"))
    histories.rename({"customer": "user"}).head(5).write_ndjson(folder / "new_users.jsonl")
    items = [f"SKU-{item:04}" for item in range(62)]  # nobody has bought two of them
    vectors = np.random.default_rng(1).normal(size=(62, 8)).tolist()
    pl.DataFrame({"item": items, "vector": vectors}).write_parquet(folder / "vectors.parquet")
    orders.select("product", pl.lit("A thing").alias("title")).unique().write_csv(folder / "products.csv")
    interactions.with_columns((pl.int_range(pl.len()) % 5 + 1).alias("stars")).write_csv(folder / "log.csv")
    (folder / "logs").mkdir()
    orders.rename({"product": "sku"}).write_parquet(folder / "logs" / "first.parquet")
    dates = pl.col("bought_at").str.to_datetime().dt.strftime("%d/%m/%Y %H:%M:%S")
    orders.with_columns(dates).write_csv(folder / "export.csv", separator=";")
    _movielens(folder, log)
    _amazon(folder, log)
    category = (pl.col("item") % 2 + 10).alias("category")
    ciao = log.select("user", "item", category, pl.col("time").alias("timestamp")).write_csv()
    (folder / "ciao_ratings.csv.gz").write_bytes(gzip.compress(ciao.encode()))
    lines = log.group_by("user", maintain_order=True).agg(pl.col("item").cast(str)).rows()
    beauty = "".join(f"{user} {' '.join(items)}\n" for user, items in lines)
    (folder / "s3rec_Beauty.txt.gz").write_bytes(gzip.compress(beauty.encode()))
    clicks = {"user": "user_id", "item": "click_article_id", "time": "click_timestamp"}
    log.with_columns(pl.col("time") * 1000).rename(clicks).write_parquet(folder / "globo_clicks.parquet")
    log.write_parquet(folder / "mtg_decks.parquet")
    won = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("won")).otherwise(pl.lit("lost"))
    log.with_columns(event=won).write_parquet(folder / "tennis.parquet")
    (folder / "go_games.txt.zst").write_bytes(zstandard.compress(beauty.encode()))
    _committed_points(folder)


def _committed_points(folder: Path) -> None:
    """Copy the points of the studies in benchmarks/, if the checkout has them."""
    for points in (EXAMPLES.parent / "benchmarks").glob("*/*.jsonl"):
        copy = folder / points.relative_to(EXAMPLES.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(points, copy)


def write_points(folder: Path) -> None:
    """Write what docs/laws.md fits: points over sizes, data and passes, points of a quickstart, and a table."""
    rows = [
        {"N": n, "U": u, "D": u * r, "loss": 5 + 30 / n**0.4 + 40 / (u * r) ** 0.35}
        for n in (1e3, 2e3, 4e3, 1e4, 3e4, 1e5, 3e5)
        for u in (1e4, 1e5)
        for r in (1, 4, 16)
    ]
    _points(folder / "runs" / "repeats", rows)
    _points(folder / "studies" / "quickstart", [row for row in rows if row["D"] == max(row["D"] for row in rows)])
    table = pl.DataFrame(rows).select(pl.col("N").alias("params"), pl.col("D").alias("tokens"), "loss")
    table.write_csv(folder / "table.csv")


def _points(folder: Path, rows: list[dict[str, float]]) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        point = {"schema": 1, "best": True, "status": "finished", "run": f"r{number}", "N_body": row["N"]}
        losses = {"val_loss": row["loss"], "test_loss": row["loss"]}
        lines.append(json.dumps(point | {"U": row["U"], "D": row["D"]} | losses) + "\n")
    (folder / "points.jsonl").write_text("".join(lines))


def _log() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for user in range(120):
        item, length = int(generator.integers(60)), int(generator.integers(12, 70))
        for time in np.sort(generator.choice(120 * 24 * 60, length, replace=False)):
            rows.append((user, item, 967_766_400 + 60 * int(time)))
            item = (item + 1) % 60 if generator.random() < 0.7 else int(generator.integers(60))
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def _movielens(folder: Path, log: pl.DataFrame) -> None:
    ratings = [(user + 1, item + 1, 4, time) for user, item, time in log.rows()]
    dat = _lines("::", ratings)
    csv = "userId,movieId,rating,timestamp\n" + _lines(",", ratings)
    (folder / "data" / "raw").mkdir(parents=True)
    for zipped, inside, text in (
        ("ml-1m.zip", "ml-1m/ratings.dat", dat),
        ("data/raw/ml-1m.zip", "ml-1m/ratings.dat", dat),
        ("data/raw/ml-latest-small.zip", "ml-latest-small/ratings.csv", csv),
        ("data/raw/ml-25m.zip", "ml-25m/ratings.csv", csv),
        ("downloads/ml-20m.zip", "ml-20m/ratings.csv", csv),
    ):
        (folder / zipped).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / zipped, "w") as archive:
            archive.writestr(inside, text)
    (folder / "downloads" / "ml-1m").mkdir()
    (folder / "downloads" / "ml-1m" / "ratings.dat").write_text(dat)
    (folder / "ml-1m_ratings.dat.xz").write_bytes(lzma.compress(dat.encode()))
    (folder / "ml-latest-small_ratings.csv.gz").write_bytes(gzip.compress(csv.encode()))
    (folder / "ml-1m").mkdir()
    movies = "".join(f"{item}::Film {item} (2000)::Drama\n" for item in range(1, 61))
    (folder / "ml-1m" / "movies.dat").write_text(movies)


def _amazon(folder: Path, log: pl.DataFrame) -> None:
    rows = [(f"A{user}", f"B{item:09}", 5.0, time) for user, item, time in log.rows()]
    (folder / "amazon").mkdir()
    (folder / "amazon-2023").mkdir()
    for place, domain in enumerate(("Books", "Magazine_Subscriptions", "Toys_and_Games")):
        mine = [row for row, item in zip(rows, log["item"], strict=True) if item % 3 == place]
        of_2018 = _lines(",", [(item, user, rating, time) for user, item, rating, time in mine])
        (folder / "amazon" / f"{domain}.csv").write_text(of_2018)
        of_2023 = _lines(",", [(user, item, rating, time * 1000) for user, item, rating, time in mine])
        (folder / "amazon-2023" / f"{domain}.csv").write_text("user_id,parent_asin,rating,timestamp\n" + of_2023)
        if domain == "Magazine_Subscriptions":
            (folder / f"{domain}.csv.gz").write_bytes(gzip.compress(of_2018.encode()))


def _lines(separator: str, rows: Iterable[tuple[object, ...]]) -> str:
    return "".join(separator.join(str(value) for value in row) + "\n" for row in rows)
