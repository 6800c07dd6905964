"""Types of event from the raw file to what is recommended, and which of them are targets."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from fit_arguments import fit_arguments

import lrec as library
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits.reduction import Reduction
from lrec.data.splits.rules import UserSplit
from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError
from lrec.evaluation.cases import cases_of_test, rank_by_net
from lrec.model.config import TransformerConfig
from lrec.model.transformer import Transformer
from lrec.study import budget
from lrec.study.grid import PlannedRun
from lrec.study.options import Study
from lrec.study.outlook import TINY, TINY_EPOCHS, measure

ITEMS, LENGTH, USERS = 12, 12, 200


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An item that is viewed is followed by the next one, one that is bought by the one after that."""
    random = np.random.default_rng(0)
    lines = ["user,item,timestamp,action,shelf"]
    for user in range(USERS):
        item = int(random.integers(ITEMS))
        for time in range(LENGTH):
            action = str(random.choice(["view", "buy"]))
            lines.append(f"u{user},i{item},{time},{action},{item % 3}")
            item = (item + (2 if action == "buy" else 1)) % ITEMS
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


Train = Callable[..., Path]
OPTIONS: dict[str, object] = {
    "data__split__trajectory": 4,
    "data__split__trajectory_min_length": 10,
    "model__architecture__positions": "none",  # those of a trajectory are beyond what is trained
    "model__optimizer__lr": 0.008,
    "trainer__max_epochs": 15,
    "trainer__check_val_every_n_epoch": 15,
}


@pytest.fixture(scope="module")
def arguments(log: Path) -> Callable[..., list[str]]:
    def of(run: Path, **changed: object) -> list[str]:
        return fit_arguments(run, log, **(OPTIONS | changed))

    return of


@pytest.fixture(scope="module")
def train(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run with some options, trained once."""
    from lrec.cli import main

    folder, made = tmp_path_factory.mktemp("runs"), {}

    def of(**changed: object) -> Path:
        key = str(changed)
        if key not in made:
            made[key] = folder / str(len(made))
            main(arguments(made[key], **changed))
        return made[key]

    return of


READ = {"data__event_column": "action"}


def result_of(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())["model"]
    return found


@pytest.mark.slow
def test_types_are_learned_where_they_decide(train: Train) -> None:
    assert result_of(train(**READ))["loss"] < 0.2
    assert result_of(train())["loss"] == pytest.approx(math.log(2), abs=0.1)


def first(found: pl.DataFrame) -> list[str]:
    return [items[0] for items in found["items"].to_list()]


HISTORIES = pl.DataFrame({"user": ["a", "b"], "items": [["i1", "i3"]] * 2, "events": [["buy", "view"], ["buy", "buy"]]})


def test_the_last_type_decides_what_is_recommended(train: Train) -> None:
    model = library.load(train(**READ))
    assert first(model.recommend(HISTORIES)) == ["i4", "i5"]
    rows = pl.DataFrame({"user": ["a", "a"], "item": ["i1", "i3"], "event": ["buy", "buy"]})
    assert first(model.recommend(rows)) == ["i5"]
    unknown = pl.DataFrame({"items": [["i1", "?", "i3", "?"]], "events": [["buy", "buy", "buy", "view"]]})
    assert first(model.recommend(unknown)) == ["i5"]  # the type of an item that is skipped is skipped with it
    assert model.recommend([]).is_empty()
    assert model.recommend([[]])["fallback"].to_list() == [True]


@pytest.mark.parametrize(
    ("histories", "says"),
    [
        (HISTORIES.drop("events"), r"reads types of event .*: histories need a column events, or event"),
        (HISTORIES.with_columns(events=pl.lit(["buy"])), "events has not as many entries as items"),
        (HISTORIES.with_columns(events=pl.lit(["buy", "lend"])), "lend is no type of event of the training data: buy"),
    ],
)
def test_types_that_are_missing_or_unknown_are_refused(train: Train, histories: pl.DataFrame, says: str) -> None:
    with pytest.raises(UserError, match=says):
        library.load(train(**READ)).recommend(histories)


def test_a_network_that_reads_no_types_does_not_look_at_them(train: Train) -> None:
    model = library.load(train())
    assert model.recommend(HISTORIES).equals(model.recommend(HISTORIES.drop("events")))


def test_the_command_recommends_from_files_with_types(
    train: Train, log: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    (tmp_path / "h.jsonl").write_text(HISTORIES.write_ndjson())
    arguments = ["recommend", f"--ckpt_path={train(**READ)}", f"--histories={tmp_path}/h.jsonl"]
    arguments += [f"--out={tmp_path}/o.jsonl", "--exclude_seen=false"]
    lrec(*arguments)
    assert first(pl.read_ndjson(tmp_path / "o.jsonl")) == ["i4", "i5"]
    arguments[2] = f"--histories={log}"
    lrec(*arguments)
    found = pl.read_ndjson(tmp_path / "o.jsonl")
    after = dict(zip(found["user"], first(found), strict=True))
    last = pl.read_csv(log).group_by("user", maintain_order=True).last().select("user", "item", "action")
    follows = [
        after[user] == f"i{(int(item[1:]) + (2 if action == 'buy' else 1)) % ITEMS}"
        for user, item, action in last.rows()
    ]
    assert np.mean(follows) > 0.9
    assert "has no column kind" in refused(*arguments, "--event_column=kind")
    arguments[1] = f"--ckpt_path={train()}"
    error = refused(*arguments, "--event_column=action")
    assert "--event_column is only for networks that read types of event" in error


@pytest.mark.slow
def test_exported_networks_read_types(train: Train, tmp_path: Path, lrec: Callable[..., str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = train(**READ)
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.onnx")
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.safetensors")
    model = library.load(tmp_path / "model.safetensors")
    found = model.recommend(HISTORIES)
    assert found.equals(library.load(run).recommend(HISTORIES))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["lrec"])["event_names"]
    assert names == ["buy", "view"]
    items = np.repeat(model.index(pl.Series(["i1", "i3"]))[None], 3, 0)
    events = np.array([[0, 1], [0, 0], [0, 2]])
    scores, listed, _ = session.run(None, {"items": items, "lengths": np.array([2, 2, 2]), "events": events})
    assert [model.item_ids[int(row[0])] for row in listed[:2]] == first(found)
    best = [each[0] for each in found["scores"].to_list()]
    assert np.take_along_axis(scores[:2], listed[:2, :1], 1)[:, 0] == pytest.approx(best, abs=1e-4)
    assert np.isnan(scores[2]).all()  # there is no third type


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model__architecture__attention": "hstu", "model__architecture__mlp": "none"},
    ],
)
def test_tasks_read_types(train: Train, tmp_path: Path, lrec: Callable[..., str], options: dict[str, str]) -> None:
    """What a trajectory's own predictions have is the true event's type, so it finds nearly all of it, from the cache;
    who guesses the types is right in one of two steps."""
    run = train(**READ, **options)
    lrec("tasks", f"--runs={run}", "--tasks=trajectory,robustness", f"--out={tmp_path}")
    tasks = json.loads((tmp_path / "tasks.json").read_text())["tasks"]
    clean = tasks["robustness"]["sections"][0]["groups"]["clean"]["scorers"]["3k"]
    for metric in ("loss", "NDCG@10", "HR@1"):
        assert clean[metric]["value"] == pytest.approx(result_of(run)[metric], abs=1e-5)
    whole = tasks["trajectory"]["sections"][1]["groups"]["whole"]["scorers"]["3k"]
    assert whole["NDCG"]["value"] > 0.7


def test_lists_of_predict_know_types(train: Train, lrec: Callable[..., str], tmp_path: Path) -> None:
    run = train(**READ)
    options = [
        f"--config={run / 'config.yaml'}",
        f"--trainer.default_root_dir={tmp_path}",
        "--model.exclude_seen=false",
    ]
    lrec("predict", *options, f"--ckpt_path={run}/checkpoints/best.ckpt")
    log = pl.read_csv(library_config(run)["path"]).group_by("user", maintain_order=True).last()
    follows = {
        u: f"i{(int(i[1:]) + (2 if a == 'buy' else 1)) % ITEMS}"
        for u, i, a in log.select("user", "item", "action").rows()
    }
    found = pl.read_parquet(tmp_path / "predictions.parquet")
    assert np.mean([follows[user] == items[0] for user, items in found.select("user", "items").rows()]) > 0.9


def library_config(run: Path) -> dict[str, Any]:
    from lrec.run import Run

    return Run(run).config.nested["data"]


# Which events are targets.


def module(log: Path, folder: Path, **options: Any) -> InteractionsDataModule:
    data = InteractionsDataModule(log, data_dir=folder, max_len=5, targets_per_step=40, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_chosen_types_alone_are_targets(log: Path, tmp_path: Path) -> None:
    """In training, each once in an epoch; in validation and test, where the held-out event is of such a type."""
    data = module(log, tmp_path, event_column="action", target_events=["buy"])
    every = module(log, tmp_path, event_column="action")
    table = pl.read_csv(log).with_columns(place=pl.int_range(pl.len()).over("user"))
    bought = table.filter(pl.col("action") == "buy")
    expected = bought.filter(pl.col("place").is_between(1, LENGTH - 3))
    assert len(expected) == data.U
    assert every.U == USERS * (LENGTH - 3)
    assert len(data.cuts.val_targets.users_T) == len(bought.filter(pl.col("place") == LENGTH - 2))
    assert len(data.cuts.test_targets.users_T) == len(bought.filter(pl.col("place") == LENGTH - 1))
    assert data.steps_per_epoch == every.steps_per_epoch
    assert data.data_hash != every.data_hash
    batches, plain = list(data.train_dataloader()), list(every.train_dataloader())
    assert sum(batch.step_targets for batch in batches) == data.U
    items = pl.Series([data.item_table()["raw_id"][int(i)] for batch in batches for i in batch.targets_M])
    assert items.sort().to_list() == expected["item"].sort().to_list()
    for batch, whole in zip(batches, plain, strict=True):
        assert batch.items_BL.equal(whole.items_BL)
        assert batch.step_positions == whole.step_targets == whole.step_positions
        assert batch.n_positions == whole.n_positions == len(whole.targets_M)
        assert set(batch.positions_M.tolist()) <= set(whole.positions_M.tolist())
        # A target of type buy stands where the next event is one.
        following = dict(zip(whole.positions_M.tolist(), whole.targets_M.tolist(), strict=True))
        assert [following[place] for place in batch.positions_M.tolist()] == batch.targets_M.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": Reduction(interactions=0.5)},
        {"split": GlobalTemporal(0.6, 0.8, targets="all")},
        {"split": UserSplit(0.2, 0.2)},
        {"domain_column": "shelf", "only_domain": "1"},
    ],
    ids=["reduction", "temporal", "users", "domain"],
)
def test_every_split_and_reduction_knows_them(log: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    data = module(log, tmp_path, event_column="action", target_events=["buy"], **options)
    every = module(log, tmp_path, event_column="action", **options)
    store, part = every.store, every.batch_plan.part
    assert store.events_N is not None
    buy = store.event_types.index("buy")
    entries = [np.arange(start + 1, start + n) for start, n in zip(part.starts_U, part.lengths_U, strict=True) if n > 1]
    assert (part.split.events(part.rows_at(np.concatenate(entries))) == buy).sum() == data.U
    assert sum(len(batch.targets_M) for batch in data.train_dataloader()) == data.U
    for name in ("val_targets", "test_targets"):
        mine, whole = getattr(data.cuts, name), getattr(every.cuts, name)
        bought = store.events_N[store.offsets_U1[whole.users_T] + whole.positions_T] == buy
        assert mine.users_T.tolist() == whole.users_T[bought].tolist()
        assert mine.positions_T.tolist() == whole.positions_T[bought].tolist()


def test_a_network_without_types_ranks_cases_that_have_them(log: Path, tmp_path: Path) -> None:
    data = module(log, tmp_path, event_column="action")
    cases = cases_of_test(data.cuts, data.max_len)
    assert cases.events_N is not None
    ranked = rank_by_net(Transformer(TransformerConfig(data.n_items, data.max_len, 1, 8, 1)).eval(), cases)
    assert np.isfinite(ranked.rank_C).all()


def test_all_types_as_targets_are_all_events(log: Path, tmp_path: Path) -> None:
    data = module(log, tmp_path, event_column="action", target_events=["view", "buy"])
    every = module(log, tmp_path, event_column="action")
    for batch, whole in zip(data.train_dataloader(), every.train_dataloader(), strict=True):
        assert batch.targets_M.equal(whole.targets_M)
        assert batch.step_targets == whole.step_targets
    assert data.evaluated("val")[0].users_T.tolist() == every.evaluated("val")[0].users_T.tolist()


def test_a_run_counts_its_targets(train: Train) -> None:
    run = train(**READ, data__target_events="[buy]")
    point = json.loads((run / "points.jsonl").read_text().splitlines()[-1])
    assert json.loads((run / "metrics.json").read_text())["data"]["target_events"] == ["buy"]
    table = pl.read_csv(library_config(run)["path"]).with_columns(place=pl.int_range(pl.len()).over("user"))
    in_training = pl.col("place").is_between(1, LENGTH - 4 - 3)
    assert point["U"] == len(table.filter((pl.col("action") == "buy") & in_training))
    assert point["D"] == 15 * point["U"]
    assert result_of(run)["targets"] == len(table.filter((pl.col("action") == "buy") & (pl.col("place") == LENGTH - 5)))
    assert result_of(run)["loss"] < 0.3
    assert json.loads((run / "throughput.json").read_text())["real_share"] == 1, "all windows are equally long"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's rate would be measured, not assumed")
def test_a_plan_counts_what_a_run_computes(train: Train) -> None:
    """Where all windows are full. A rate is assumed for GPUs, from which the FLOPs of a plan can be read."""
    one_epoch = {"trainer__max_epochs": 1, "trainer__check_val_every_n_epoch": 1}
    run = train(**READ, data__target_events="[buy]", data__max_len=LENGTH - 4 - 2 - 1, **one_epoch)
    options = yaml.safe_load((run / "config.yaml").read_text())
    options["trainer"] |= {"accelerator": "gpu", "precision": "32-true"}
    study = Study("planned", [], sizes=["3k"], out=run / "none", holdout=0, law=None, gpus=(0,))

    (found,) = budget.plan(study, [PlannedRun("planned", "3k", 0, 1.0, "", "", False, options)])
    flops = (found.hours * 3600 - budget.STARTING_S) * budget.ASSUMED["32-true"]
    last = json.loads((run / "points.jsonl").read_text().splitlines()[-1])
    assert flops / (1 + budget.BESIDE_STEPS) == pytest.approx(last["flops"], rel=1e-6)


def test_an_outlook_counts_and_asks_for_targets(log: Path, tmp_path: Path) -> None:
    """Every fifth event is the loan of one item: who is asked for loans alone is never wrong."""
    rows = pl.concat([pl.read_csv(log).with_columns(user=pl.format("{}-{}", "user", pl.lit(n))) for n in range(3)])
    is_loan = pl.int_range(pl.len()) % 5 == 0
    rows = rows.with_columns(
        action=pl.when(is_loan).then(pl.lit("lend")).otherwise("action"),
        item=pl.when(is_loan).then(pl.lit("book")).otherwise("item"),
    )
    rows.write_csv(tmp_path / "loans.csv")
    data = module(
        tmp_path / "loans.csv", tmp_path, time_column="timestamp", event_column="action", target_events=["lend"]
    )
    evidence = measure(data, seed=0)
    assert evidence.targets == evidence.counted[-1].targets == data.U
    assert [run.size for run in evidence.tiny] == list(TINY)
    for run in evidence.tiny:
        assert run.targets < TINY_EPOCHS * data.U
        assert run.fresh_loss == pytest.approx(run.loss, abs=0.01)


# The store.


def test_rows_that_differ_in_their_type_alone_are_two_events(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp,action\n" + "a,x,1,view\na,x,1,buy\na,x,1,buy\na,y,2,view\n" * 2
    )
    data = InteractionsDataModule(tmp_path / "log.csv", event_column="action", data_dir=tmp_path / "stores")
    data.prepare_data()
    store = library_store(data)
    assert store.event_types == ["buy", "view"]
    assert store.events_N is not None
    assert [store.event_types[code] for code in store.events_N] == ["view", "buy", "view"]
    assert store.statistics["duplicates_dropped"] == 5


def library_store(data: InteractionsDataModule) -> Any:
    from lrec.data.store.store import Store

    return Store.open(data.store_path, verify=True)


def test_a_store_without_types_is_what_it_was(log: Path, tmp_path: Path) -> None:
    data = InteractionsDataModule(log, data_dir=tmp_path)
    data.prepare_data()
    assert "event" not in data.source()["columns"]
    assert sorted(file.name for file in data.store_path.iterdir()) == [
        *("items.npy", "items.parquet", "meta.json", "offsets.npy", "times.npy", "users.parquet")
    ]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data__event_column": "kind"}, "has no column kind (option event_column)"),
        ({"data__target_events": "[buy]"}, "data.target_events needs data.event_column"),
        (READ | {"data__target_events": "[]"}, "data.target_events needs data.event_column, and at least one"),
        (READ | {"data__target_events": "[lend]"}, "data.target_events lend: the data have buy, view"),
    ],
)
def test_wrong_columns_and_types_are_refused(
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    refused: Callable[..., str],
    changed: dict[str, object],
    says: str,
) -> None:
    assert says in refused(*arguments(tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_too_many_types_and_empty_ones_are_refused(tmp_path: Path) -> None:
    lines = [f"u{user},i{user % 7},{user},{user}" for user in range(300)]
    (tmp_path / "many.csv").write_text("\n".join(["user,item,timestamp,action", *lines]))
    with pytest.raises(UserError, match="many: 300 types of event, such as 0; at most 256 are possible"):
        InteractionsDataModule(tmp_path / "many.csv", event_column="action", data_dir=tmp_path).prepare_data()
    (tmp_path / "gap.csv").write_text("user,item,timestamp,action\na,x,1,view\na,y,2,\n")
    with pytest.raises(UserError, match=r"gap.csv, row 3: action is empty"):
        InteractionsDataModule(tmp_path / "gap.csv", event_column="action", data_dir=tmp_path).prepare_data()
