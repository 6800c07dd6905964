"""`lrec update`: add new rows to a run's data, continue the training of its network, and keep the better network.

Most new rows are for training, later ones for validation. On the same targets of the newest ones, lrec compares the old
network, the new one and, if asked for, a full retraining. An update that is killed and restarted has the same result.

Shape suffixes: N new rows, U users, I items of the store, V catalogue of a model, T targets, C cases.
"""

import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.checkpoint.reading import STATE, check
from lrec.common import hardware
from lrec.common.files import (
    check_folder,
    file_hash,
    locked,
    read_json,
    remove,
    sibling,
    undamaged,
    write_json,
    write_text,
)
from lrec.common.pages import rendered
from lrec.common.text_tables import on_terminal
from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.data.formats.readers import Columns, infer_format
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits.reduction import DomainStore
from lrec.data.splits.rules import Split, Targets
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.store.prepare import append_to, refuse_append, refuse_other_unit
from lrec.data.store.store import Store, time_text
from lrec.errors import UserError, check_range
from lrec.evaluation.cases import Cases, Ranked, cases_before, rank_by_net, rank_by_popularity, values_of
from lrec.evaluation.shared_scoring import device
from lrec.evaluation.standard_errors import mean_or_nan, standard_error
from lrec.options.class_paths import check_trusted
from lrec.options.objects import as_plain
from lrec.run import UPDATE, Point, Run, RunConfig, served
from lrec.serving.export import load
from lrec.serving.recommender import Model
from lrec.study.grid import PlannedRun, changed
from lrec.study.launch import Training, lock_of

OLD, UPDATED, FULL, POPULARITY = "old", "updated", "full", "popularity"
FIGURES = ("loss", "HR@10", "NDCG@10")
# Share of the run's own learning rate: its network is trained already, and Adam's moments start from zero.
LR_SHARE = 0.25


@dataclass(frozen=True)
class Base:
    """The run, recipe and data that an update begins with."""

    run: Run
    config: RunConfig  # the options of the run that the first update began with
    store: Store
    trained_until: int  # time of the last interaction in its training, in the source's unit


def update(
    run: Path,
    *,
    data: Path,
    out: Path | None = None,
    steps: int | None = None,
    lr: float | None = None,
    replay: float = 0.1,
    judge: float = 0.2,
    full: bool = False,
    trust: bool = False,
) -> None:
    """Append new rows to a run's data, continue the training of its network on them, and keep the better network.

    Args:
        run: A run of lrec fit, or the folder of an earlier update, whose kept model and data are then used.
        data: File, folder or glob of the new rows, with the columns of the run's data and with times.
        out: Folder of the update; by default RUN-updated.
        steps: Number of optimizer steps; null: one pass over the new rows and the replay.
        lr: Peak learning rate; null: a quarter of the run's peak learning rate.
        replay: Share of the users whose whole histories the network trains on again.
        judge: Share of the new rows that judge the models: the newest. Half as many before them are for validation.
        full: Also train a new network from the beginning, with the run's recipe on the same data, and compare it.
        trust: Import classes that the run names and that are not lrec's own.
    """
    check_range("--judge", judge, above=0, at_most=0.5)
    check_range("--steps", steps, at_least=1)
    check_range("--lr", lr, above=0)
    check_range("--replay", replay, above=0, at_most=1)
    out, recipe = out or sibling(run, "updated"), {"steps": steps, "lr": lr, "replay": replay}
    check_folder(out, "--out")
    base = _base(run, trust)
    config, new, best = base.config, _reader(base, data), base.run.best
    split, late = _windows(base, new, judge)
    check(best)
    network = file_hash(best / STATE if best.is_dir() else best)  # the run may have been trained again
    asked: dict[str, Any] = {"run": str(base.run.folder), "network": network, "store": base.store.hash}
    asked |= {"new": new.source(), "recipe": recipe, "split": asdict(split), "full": full}
    plan, page = out / "plan.json", out / "update.md"
    if any(out.glob("[!.]*")) and read_json(plan) != asked:
        raise UserError(f"--out {out} holds another update, or something else: choose another")
    given = {"data.split": as_plain(split), "points.test": False}
    from_run = {"model.warm_start": str(base.run.folder)}
    from_run |= trained_on(config, base.trained_until + 1, steps, lr, replay)
    store = _appended(base, new, given | from_run)
    with locked(lock_of(out), f"another update is under way in {out}: wait for its end, or choose another --out"):
        write_json(plan, asked)
        anew = changed(config.options, given | {"data.store": str(store)})
        options = {UPDATED: changed(anew, from_run)} | ({FULL: anew} if full else {})
        points = dict[str, Point]()
        for name, each in options.items():
            print(f"  training {out / name}: see its files log.txt and progress", file=sys.stderr, flush=True)
            points[name] = carry_out(out / name, each)
        minutes = {name: point.wall_s / 60 for name, point in points.items()}
        folders = {OLD: base.run.folder} | {name: out / name for name, point in points.items() if not point.diverged}
        record = _judge(base, folders, options[UPDATED], trust)
        until = base.trained_until if record["kept"] == OLD else int(split.validate_from) - 1
        record |= {"store": str(store.absolute()), "trained_until": until, "options": config.options}
        record |= {"split": asdict(split), "recipe": recipe | {"lr": from_run["model.optimizer.lr"]}}
        record |= {"late_rows": late, "minutes": minutes, "diverged": sorted(minutes - folders.keys())}
        write_json(out / UPDATE, record)
        text = rendered("study", "update.md.j2", record | {"run": base.run.folder, "figures": FIGURES})
        write_text(page, text)
    print(f"{on_terminal(text)}\n\n{page}")


def _base(folder: Path, trust: bool) -> Base:
    """The run to begin with, its data and the time of its last training row. UserError if they cannot be updated."""
    earlier = read_json(folder / UPDATE)
    run = Run((served(folder) if earlier else folder).resolve())  # a link may name another folder later
    with undamaged(stored := folder / UPDATE if earlier else run.config_file):
        config = RunConfig(earlier["options"]) if earlier else run.config
        path, trained_until = (Path(earlier["store"]), int(earlier["trained_until"])) if earlier else (Path(), 0)
        trainer = config.options.get("trainer") or {}
        classes = [trainer.get(name) for name in ("callbacks", "logger", "plugins", "strategy", "profiler")]
        classes += [config.options[name] | {} for name in ("data", "model")]
    check_trusted(classes, trust, stored)
    if earlier:
        store = Store.open(path)
    elif config.value("data.reduction.since") is not None:
        whole = "name the folder of this update, which has the original recipe"
        raise UserError(f"{folder} was trained by an update: {whole}")
    else:
        data = _data_of(run)
        if data.store.times_N is None:
            raise UserError(f"{data.store.path} has no times, so an update cannot tell which rows are new")
        if data.learned.event_codes is not None:
            raise UserError(f"{run.folder} reads features of events, as no update can: train it on all rows")
        ends_U = data.store.offsets_U1[:-1] + data.cuts.train_U
        trained_until = int(data.store.times_N[ends_U[data.cuts.train_U > 0] - 1].max())
        store = data.open_store()  # with the rows of all domains
    if not run.best.exists():
        raise UserError(f"{run.folder} has no best checkpoint: finish the run first")
    refuse_append(store)
    return Base(run, config, store, trained_until)


def _data_of(run: Run) -> SequenceDataModule:
    """The data of a run. If their file is gone or has grown, they come from the store that was made of them."""
    had = {point.data_hash for point in run.points} - {""}
    data = datamodule_of(run.config.options)
    stores = sorted(meta.parent for meta in data.data_dir.glob(f"{data.store_name}-*/meta.json"))
    refusals = list[UserError]()
    for given in ({}, *({"data.store": str(store)} for store in stores)):
        try:
            data = datamodule_of(changed(run.config.options, given))
            data.setup("test")
        except UserError as error:
            refusals.append(error)
            continue
        if had <= {data.data_hash}:
            return data
        way_out = "bring back the file that it was trained on, and give the new rows as a file of their own"
        refusals.append(UserError(f"{run.folder} was trained on other data than {data.store.path} holds: {way_out}"))
    raise refusals[0]


def _reader(base: Base, data: Path) -> InteractionsDataModule:
    """A data module that reads the new rows as those of the store were read."""
    reading = base.store.meta["reading"]
    given = {f"{name}_column": reading.get(f"{name}_column") for name in Columns.__dataclass_fields__}
    given |= {"min_rating": reading.get("min_rating"), "memory_gib": base.config.value("data.memory_gib")}
    given |= {"format": base.config.value("data.format")} if infer_format(data.name) is None else {}
    return InteractionsDataModule(data, data_dir=Path(base.config.value("data.data_dir")), **given)


def _windows(base: Base, new: InteractionsDataModule, judge: float) -> tuple[GlobalTemporal, int]:
    """The split of the new rows by time, and how many are not newer than the run's training data."""
    raw = new.read()
    assert not isinstance(raw.frame, pl.DataFrame)
    times = [frame["time"].to_numpy() for frame in raw.frame]
    if not sum(map(len, times)):
        raise UserError(f"{new.path}: there are no rows in it")
    refuse_other_unit(base.store, raw.all_facts(), new.path)
    times_N = np.sort(np.concatenate(times))
    newer_N = times_N[times_N > base.trained_until]
    cuts = [int((1 - share) * len(newer_N)) for share in (1, 1.5 * judge, judge)]
    begin, first, last = newer_N[cuts].tolist() if len(newer_N) else (0, 0, 0)
    if not begin < first < last:
        newer = f"{len(newer_N):,} of {len(times_N):,} rows are newer than what {base.run.folder} trained on"
        wrong = "They are too few, or too many have the same time, to train, validate and judge"
        raise UserError(f"{new.path}: {newer}. {wrong}")
    split = GlobalTemporal(first, last, "all")
    if (base.config.value("data.split.targets"), base.config.value("data.split.validate_by")) == ("window", "time"):
        split = replace(split, targets="window", test_targets="all")  # metrics of sets may choose the checkpoint
    return split, len(times_N) - len(newer_N)


def _appended(base: Base, new: InteractionsDataModule, changes: dict[str, Any]) -> Path:
    """Make the store of old and new rows. UserError, and no new store, if no row is new, or a part has no targets."""
    before = set(new.data_dir.iterdir()) if new.data_dir.is_dir() else set()
    store = append_to(base.store, new.source(), new.read, new.data_dir, new.memory_gib)
    try:
        opened = Store.open(store)
        if opened.statistics["interactions"] == base.store.statistics["interactions"]:
            raise UserError(f"{new.path}: {base.store.path} has all of its rows already")
        datamodule_of(changed(base.config.options, changes | {"data.store": str(store)})).setup("fit")
    except UserError:
        if store not in before:
            remove(store)
        raise
    return store


def trained_on(
    config: RunConfig, since: int, steps: int | None = None, lr: float | None = None, replay: float = 0.1
) -> dict[str, Any]:
    """The options, by dotted name, that change if the training of a network continues on newer data. `since` is the
    time, in the source's unit, from which rows are new to the network. It trains on these rows with up to max_len older
    rows of each user, and on the whole histories of a share of the users, by the hash of their ids (`replay`). There is
    one evaluation, at the end, so nothing is chosen on the validation window. UserError if the network's item table is
    made of vectors, or if its optimizer has no lr."""
    if config.value("model.item_vectors") is not None and config.value("model.item_vectors_use") != "initial":
        why = "item embeddings are made of vectors, and no network can start from such a network"
        raise UserError(f"model.item_vectors: {why}")
    if (rate := config.value("model.optimizer.lr")) is None:
        raise UserError("model.optimizer has no lr, but an update continues at a smaller one: use one that has it")
    in_batches = config.value("trainer.accumulate_grad_batches", 1)
    changes: dict[str, Any] = {
        "data.reduction": {"users": replay, "since": since, "before": config.value("data.max_len")},
        "model.optimizer.lr": lr or LR_SHARE * float(rate),
        "trainer.max_time": None,
        "trainer.max_epochs": 1 if steps is None else -1,
        "trainer.max_steps": steps or -1,
        "trainer.limit_train_batches": None,
        "trainer.val_check_interval": None if steps is None else steps * in_batches,
        "trainer.check_val_every_n_epoch": 1 if steps is None else None,
    }
    if config.value("model.item_vectors_use") == "initial":  # the rows are the network's own by now
        changes |= {"model.item_vectors": None, "model.item_vectors_use": "added", "data.item_features": None}
    if "model.optimizer.switch.lr" in config.flat:
        changes["model.optimizer.switch"] = None
    return changes


def carry_out(folder: Path, options: dict[str, Any]) -> Point:
    """Train a run as a study does; return its best evaluation, or its last if it diverged. UserError if it failed."""
    planned = PlannedRun(folder.name, "", 0, 1.0, "", "", False, options)
    training = Training(planned, folder, "update", int(os.environ.get("OMP_NUM_THREADS") or hardware.cores()))
    try:
        outcome = training.carry_out()
    except BaseException:
        training.processes.stop()
        raise
    if outcome.point is None:
        why = outcome.reason or "start the same command again"
        raise UserError(f"the training in {folder} {outcome.status}: {why}")
    return outcome.point


def _judge(base: Base, folders: dict[str, Path], options: dict[str, Any], trust: bool) -> dict[str, Any]:
    """Each model's figures on the newest window, the name of the model to keep, and the drift of the new rows."""
    data = datamodule_of(options)
    data.setup("test")
    targets, _ = data.evaluated("test")
    models = {name: load(folder, trust, new_items=False) for name, folder in folders.items()}
    frames = {name: judged(model, data.cuts, targets) for name, model in models.items()}
    cases, counts_V = cases_before(data.cuts, *targets, data.max_len), data.cuts.counts_V
    frames[POPULARITY] = _by_target(rank_by_popularity(counts_V, cases), cases, targets, counts_V)
    figures = summary(frames)
    kept = max(models, key=lambda name: figures[name][FIGURES[-1]])  # the old model if it is as good as the others
    drift = _drift(base.store, data.store, models[OLD].item_ids)
    drift |= {"loss_before": base.run.result and base.run.result.test_loss}
    drift |= {"loss_in_window": mean_or_nan(frames[OLD]["loss"].drop_nulls())}
    window: dict[str, Any] = {"targets": len(targets.users_T), "users": len(np.unique(targets.users_T))}
    ends = RunConfig(options).value("data.split.test_from"), data.store.statistics["last_time"]
    window |= {name: time_text(time, data.store.time_unit) for name, time in zip(("from", "until"), ends, strict=True)}
    return {"kept": kept, "serve": str(folders[kept].absolute()), "window": window, "models": figures, "drift": drift}


def judged(model: Model, cuts: Split, targets: Targets) -> pl.DataFrame:
    """A table with user, position, loss, HR@10 and NDCG@10 of each target, in the order of the targets. Items that the
    model does not know are left out of histories. A target is a miss without a loss (null) if the model does not know
    it, or knows no item before it."""
    known_I = cuts.store.item_table["raw_id"].is_in(model.item_ids.to_list()).to_numpy()
    assert int(known_I.sum()) == len(model.item_ids), "the store has every item of the model"
    own = replace(cuts)
    vars(own)["counts_I"] = known_I.astype(np.int64)  # the model's catalogue; the store has the same order
    cases = cases_before(own, *targets, model.about["max_len"])
    if model.net.reads_events:
        index = {name: number for number, name in enumerate(model.about["event_names"])}
        assert cases.events_N is not None
        events_N = np.array([index.get(name, -1) for name in cuts.store.event_types])[cases.events_N]
        cases = replace(cases, events_N=events_N).keeping(events_N >= 0)
    return _by_target(rank_by_net(model.net.float().to(device()), cases), cases, targets, own.counts_V)


def summary(frames: dict[str, pl.DataFrame]) -> dict[str, dict[str, float]]:
    """The mean of each model's figures, with its standard error over users (NAME_se); losses are those of targets that
    all models know. Also the mean paired `difference` in NDCG@10 from the first model, and targets without a loss."""
    first = next(iter(frames.values()))
    known = pl.all_horizontal([frame["loss"].is_not_null() for frame in frames.values()])
    result = {}
    for name, frame in frames.items():
        mine, frame = dict[str, float](), frame.with_columns(difference=frame[FIGURES[-1]] - first[FIGURES[-1]])
        for figure in (*FIGURES, "difference"):
            values = frame.filter(known) if figure == "loss" else frame
            mine |= {figure: mean_or_nan(values[figure]), f"{figure}_se": standard_error(values, figure)}
        result[name] = mine | {"unknown": frame["loss"].null_count()}
    return result


def _by_target(ranked: Ranked, cases: Cases, targets: Targets, counts_V: np.ndarray) -> pl.DataFrame:
    found = values_of(ranked, cases.targets_C, counts_V)
    of_cases = pl.DataFrame({"user": cases.users_C, "position": cases.positions_C, **{n: found[n] for n in FIGURES}})
    every = pl.DataFrame({"user": targets.users_T, "position": targets.positions_T})
    table = every.join(of_cases, ["user", "position"], "left", maintain_order="left")
    return table.with_columns(pl.col("loss").fill_nan(None), pl.col(*FIGURES[1:]).fill_null(0.0))


def _drift(old: Store, new: Store, known: pl.Series) -> dict[str, Any]:
    """The new rows' share on items that the old network does not know, and the total variation distance of popularity
    p (old rows) and q (new rows): sum |p - q| / 2, as measured and as expected about for as many draws from p. Of one
    domain's data, only its items count."""
    items = new.item_table.filter(domain=new.domain) if isinstance(new, DomainStore) else new.item_table
    joined = items.join(old.item_table, "raw_id", "left", suffix="_old", maintain_order="left")
    old_I = joined["count_old"].fill_null(0).to_numpy()
    new_I = joined["count"].to_numpy() - old_I
    p_I, q_I, n_new = old_I / old_I.sum(), new_I / new_I.sum(), int(new_I.sum())
    unknown_I = ~joined["raw_id"].is_in(known.to_list()).to_numpy()
    chance = np.minimum(2 * p_I, np.sqrt(2 * p_I / (math.pi * n_new))).sum() / 2
    return {
        "rows": n_new,
        "unknown_items": float(q_I[unknown_I].sum()),
        "distance": float(np.abs(p_I - q_I).sum() / 2),
        "distance_by_chance": float(chance),
    }
