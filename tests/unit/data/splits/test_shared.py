"""The split and the training part of a large store: made once, equal in every entry, and mapped by all processes."""

import multiprocessing
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrec.data import datamodule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits import rules
from lrec.data.splits.reduction import Reduction
from lrec.data.splits.rules import LastItems, SplitRule, UserSplit
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.store import made_once
from lrec.data.store.store import Store
from lrec.study.processes import start_server


def module(folder: Path, **options: Any) -> InteractionsDataModule:
    data = InteractionsDataModule(path=folder / "log.csv", data_dir=folder, event_column="event", **options)
    data.prepare_data()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = zip(*random.integers(0, (60, 40, 10**6), (3000, 3)).T, random.choice(["buy", "view"], 3000), strict=True)
    text = "".join(f"{user},{item},{time},{event}\n" for user, item, time, event in rows)
    (tmp_path / "log.csv").write_text("user,item,timestamp,event\n" + text)
    return tmp_path


def arrays(data: InteractionsDataModule) -> dict[str, Any]:
    part = data.batch_plan.part
    found = made_once.arrays_of(data.cuts) | {"starts": part.starts_U, "lengths": part.lengths_U, "n": part.n_targets}
    return found | {"catalogue": data.cuts.catalogue_V, "rows": part.rows, "targets_of_part": part.split.target_N}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


CASES = [
    {},
    {"split": LastItems(trajectory=3, held_out_users=0.2), "reduction": Reduction(users=0.5, interactions=0.5)},
    {"split": GlobalTemporal(targets="all"), "target_events": ["buy"]},
    {"split": UserSplit(0.2, 0.2), "reduction": Reduction(recent=0.3)},
]


@pytest.mark.parametrize("options", CASES)
def test_what_was_made_before_is_read_back_identical(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = module(folder, **options)
    alone.setup()
    expected = arrays(alone)
    assert not (alone.store.path / "made").exists(), "few rows take no time"
    monkeypatch.setattr(made_once, "SHARED_ROWS", 0)
    monkeypatch.setattr(rules.blocks_of_users, "__defaults__", (100,))
    for _ in range(2):
        again = module(folder, **options)
        again.setup()
        assert same(arrays(again), expected)
        monkeypatch.setattr(type(again.split), "cut", None)  # from now on it must be read
    assert not again.cuts.train_U.flags.owndata, "mapped, not copied"
    assert len([each for each in (alone.store.path / "made").iterdir() if each.is_dir()]) == 2


def _set_up(folder: Path, barrier: Any, results: Any) -> None:
    cut, part = LastItems.cut, datamodule.training_part

    def counted(name: str, make: Any) -> Any:
        def counting(*args: Any) -> Any:
            with (folder / "made").open("a") as file:
                file.write(name)
            return make(*args)

        return counting

    tempfile.tempdir = str(folder)  # so that an earlier test left nothing there
    LastItems.cut = counted("s", cut)  # type: ignore[method-assign]
    datamodule.training_part, made_once.SHARED_ROWS = counted("p", part), 0
    data = module(folder)
    barrier.wait()
    data.setup()
    results.put(pickle.dumps(arrays(data)))
    barrier.wait()  # when a process ends, its temporary files are deleted


@pytest.mark.parametrize("writable", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_make_it_once(folder: Path, writable: bool) -> None:
    alone = module(folder)
    alone.setup()
    if not writable:
        (alone.store.path / "made").write_text("in the way of a folder")
    start_server()  # it has imported what they need
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_set_up, args=(folder, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [pickle.loads(results.get()) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (folder / "made").read_text() == "sp"
    assert all(same(each, arrays(alone)) for each in found)


def test_a_user_s_own_rule_cuts_in_each_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(LastItems):
        pass

    monkeypatch.setattr(made_once, "SHARED_ROWS", 0)
    rule: SplitRule = Own()
    data = module(folder, split=rule)
    data.setup()
    assert isinstance(data.store, Store)
    assert not (data.store.path / "made").exists(), "its code may change, and its options stay"
