"""Figures of `lrec test` recomputed from the raw file and the exported parameters, in numpy, a user at a time.

No code of lrec reads the data, splits them, computes the network or ranks here.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

MAX_LEN, KS, DAY = 6, (1, 5, 10), 86_400
Numbers = NDArray[np.float64]
Row = tuple[str, int, str]  # item, time, type of event


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with shuffled rows and tied times, and vectors of its items; some items appear late."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("recomputed")
    lines = []
    for user in range(150):
        item, time = int(random.integers(25)), 1_500_000_000 + int(random.integers(90)) * DAY
        for _ in range(int(random.integers(1, 13))):
            late = time > 1_500_000_000 + 85 * DAY and random.random() < 0.1
            lines.append(f"u{user},{'late' if late else 'i'}{item},{time},{random.choice(['view', 'buy'])}")
            item = (item + 1) % 25 if random.random() < 0.7 else int(random.integers(25))
            time += int(random.choice([0, 60, 3_600, DAY, 9 * DAY]))
    random.shuffle(lines)
    (path / "log.csv").write_text("\n".join(["user,item,time,action", *lines]) + "\n")
    items = sorted({line.split(",")[1] for line in lines})
    pl.DataFrame({"item": items, "vector": random.normal(1, 2, (len(items), 5)).tolist()}).write_parquet(
        path / "vectors.parquet"
    )
    return path


class Target(NamedTuple):
    """What is predicted, all that comes before it, and when it is asked for."""

    item: str
    before: list[Row]
    asked: int


def histories(folder: Path) -> list[list[Row]]:
    """Each user's rows in order of time; rows with the same time in the order of the file."""
    users: dict[str, list[Row]] = {}
    for line in (folder / "log.csv").read_text().splitlines()[1:]:
        user, item, time, action = line.split(",")
        users.setdefault(user, []).append((item, int(time), action))
    return [sorted(rows, key=lambda row: row[1]) for rows in users.values()]


def last_items(users: list[list[Row]]) -> tuple[list[Row], list[Target]]:
    """Training rows, and the last item of each user with at least three rows."""
    train = [row for rows in users for row in (rows[:-2] if len(rows) > 2 else rows)]
    return train, [Target(rows[-1][0], rows[:-1], rows[-1][1]) for rows in users if len(rows) > 2]


def by_time(users: list[list[Row]], every: bool) -> tuple[list[Row], list[Target]]:
    """Training rows, the first 80 % by time, and each user's first or every item in the last 10 %."""
    times = sorted(row[1] for rows in users for row in rows)
    first, second = times[int(0.8 * len(times))], times[int(0.9 * len(times))]
    train, targets = [], []
    for rows in users:
        train += [row for row in rows if row[1] < first]
        begin = max(sum(row[1] < second for row in rows), 1)
        ends = range(begin, len(rows)) if every else range(begin, min(begin + 1, len(rows)))
        targets += [Target(rows[end][0], rows[:end], rows[end][1]) for end in ends]
    return train, targets


def normed(x: Numbers, gain: Numbers, shift: Numbers) -> Numbers:
    variance = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-12) * gain + shift


def bucket(seconds: int) -> int:
    return min(int(math.log(max(1, abs(seconds))) / 0.301), 128)


def last_hidden(
    p: dict[str, Numbers], index: list[int], read: list[Row], asked: int | None, types: list[str]
) -> Numbers:
    """GPT-2's forward pass over one history; times count if there are parameters for them."""
    length, times = len(index), [row[1] for row in read]
    x = p["items.weight"][index] + p["positions.weight"][:length]
    if "events.weight" in p:
        x = x + p["events.weight"][[types.index(row[2]) for row in read]]
    if "times.weight" in p:
        x = x + p["times.weight"][[128, *(bucket(b - a) for a, b in pairwise(times))]]
    until = times if asked is None else [*times[1:], asked]
    for layer in range(2):
        q = {name.removeprefix(f"blocks.{layer}."): each for name, each in p.items()}
        z = normed(x, q["attention_norm.weight"], q["attention_norm.bias"])
        query, key, value = np.split(z @ q["attention.qkv.weight"].T + q["attention.qkv.bias"], 3, axis=1)
        read_of_heads = []
        for head in np.split(np.arange(x.shape[1]), 2):
            logits = query[:, head] @ key[:, head].T / math.sqrt(len(head))
            if "attention.bias.gaps" in q:
                logits += q["attention.bias.gaps"][[[bucket(b - a) for a in times] for b in until]]
            weights = np.exp(np.where(np.tri(length), logits, -np.inf))
            read_of_heads.append(weights / weights.sum(1, keepdims=True) @ value[:, head])
        x = x + np.concatenate(read_of_heads, 1) @ q["attention.out.weight"].T + q["attention.out.bias"]
        z = normed(x, q["mlp_norm.weight"], q["mlp_norm.bias"])
        z = z @ q["mlp.up.weight"].T + q["mlp.up.bias"]
        z = z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        x = x + z @ q["mlp.out.weight"].T + q["mlp.out.bias"]
    hidden: Numbers = normed(x, p["norm.weight"], p["norm.bias"])[-1]
    return hidden


def figures(
    p: dict[str, Numbers],
    ids: list[str],
    targets: list[Target],
    types: list[str],
    to_request: bool,
) -> dict[str, float]:
    """Loss, and by k hits, gains, reciprocal ranks and coverage, over all items and over those not seen."""
    place = {name: index for index, name in enumerate(ids)}
    losses, n = [], 0
    sums: dict[str, float] = {}
    listed: dict[str, set[int]] = {}
    for item, before, asked in targets:
        known = [row for row in before if row[0] in place]
        if not known:
            continue
        n, read, when = n + 1, known[-MAX_LEN:], asked if to_request else None
        scores = p["items.weight"] @ last_hidden(p, [place[row[0]] for row in read], read, when, types)
        target = place.get(item)
        if target is not None:
            losses.append(math.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target])
        seen = {place[row[0]] for row in known}
        for suffix, left_out in (("", set[int]()), ("_unseen", seen)):
            order = [one for one in np.argsort(-scores, kind="stable").tolist() if one not in left_out]
            rank = order.index(target) + 1 if target in order else math.inf
            for k in KS:
                hit = rank <= k
                gain = {"HR": hit, "NDCG": hit / math.log2(1 + rank), "MRR": hit / rank}
                for name, value in gain.items():
                    sums[f"{name}@{k}{suffix}"] = sums.get(f"{name}@{k}{suffix}", 0.0) + value
                listed.setdefault(f"coverage@{k}{suffix}", set()).update(order[:k])
    covered = {name: len(some) / len(ids) for name, some in listed.items()}
    return {"loss": float(np.mean(losses)), **{name: total / n for name, total in sums.items()}, **covered}


Case = tuple[list[str], str]
CASES: dict[str, Case] = {
    "last items": ([], "last"),
    "all after a time": (["--data.split=lrec.GlobalTemporal", "--data.split.targets=all"], "all"),
    "types": (["--data.event_column=action"], "last"),
    "past": (["--model.architecture.time=past"], "last"),
    "request": (["--model.architecture.time=request", "--data.split=lrec.GlobalTemporal"], "first"),
    "input": (["--model.architecture.time=input"], "last"),
    "vectors": (["--model.item_vectors_use=added"], "last"),
    "vectors alone": (["--model.item_vectors_use=fixed"], "last"),
    "two processes": (["--config=trainer/fsdp-cpu.yaml"], "last"),
}


def on_processes(command: list[str]) -> None:
    """Run `lrec` in a process of its own, which starts the others that the configuration asks for."""
    ran = subprocess.run(
        [sys.executable, "-m", "lrec", *command], capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "two processes" else name for name in CASES]
)
def test_figures_are_those_of_another_program(
    name: str, folder: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    options, split = CASES[name]
    run = tmp_path / "run"
    arguments = [
        *("fit", "--config=data/csv.yaml", "--config=trainer/laptop.yaml", f"--data.path={folder / 'log.csv'}"),
        *("--data.user_column=user", "--data.item_column=item", "--data.time_column=time"),
        *(f"--data.data_dir={tmp_path / 'stores'}", f"--data.max_len={MAX_LEN}", "--data.targets_per_step=128"),
        *("--model.layers=2", "--model.width=16", "--model.heads=2", "--model.optimizer.lr=0.02"),
        *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={run}"),
        *([f"--model.item_vectors={folder / 'vectors.parquet'}"] if "vectors" in name else []),
        *options,
    ]
    for command in (arguments, ["test", f"--config={run / 'config.yaml'}", "--ckpt_path=best"]):
        if name == "two processes":
            on_processes(command)
        else:
            lrec(*command)
    lrec("export", "--ckpt_path", run, "--out", tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    text, ends = stored.pop("item_ids").tobytes(), stored.pop("item_ends").tolist()
    ids = [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    parameters = {key: value.astype(np.float64) for key, value in stored.items()}
    users = histories(folder)
    train, targets = last_items(users) if split == "last" else by_time(users, split == "all")
    types = json.loads((tmp_path / "model.json").read_text())["event_names"] if name == "types" else []
    catalogue = {row[0] for row in train}
    assert set(ids[: len(catalogue)]) == catalogue  # items that only the vectors know come after it
    parameters["items.weight"] = parameters["items.weight"][: len(catalogue)]
    expected = figures(parameters, ids[: len(catalogue)], targets, types, to_request=name == "request")
    found = json.loads((run / "metrics.json").read_text())["model"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
