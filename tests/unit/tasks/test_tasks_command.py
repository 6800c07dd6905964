"""`lrec tasks` as a user meets it: what it writes, what it says about cases that do not exist, what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lrec.data.splits.rules import Split
from lrec.errors import UserError
from lrec.run import Run
from lrec.tasks.command import TASKS, run_tasks
from lrec.tasks.report import Report
from lrec.tasks.results import NoCasesError
from lrec.tasks.trained_runs import Data, Ladder, ladder_of, load_run
from lrec.tasks.trajectory import trajectories

MakeRun = Callable[..., Path]


@pytest.mark.slow
def test_everything_is_the_same_again(lrec: Callable[..., str], runs: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        lrec("tasks", "--runs", runs, "--out", tmp_path / name, "--seed", seed)
    one, two, three = ((tmp_path / name / "tasks.json").read_text() for name in ("one", "two", "three"))
    assert one == two != three


def test_everything_is_written(lrec: Callable[..., str], runs: Path, tmp_path: Path) -> None:
    said = lrec("tasks", "--runs", runs, "--out", tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(["tasks.json", "tasks.md", *(f"{name}.png" for name in TASKS)])
    one = (tmp_path / "tasks.json").read_text()
    page = (tmp_path / "tasks.md").read_text()
    for title in ("Cold start", "Long tail", "Robustness", "Multi-domain transfer", "Trajectory"):
        assert f"## {title}" in page
        assert title in said
    for section in json.loads(one)["tasks"]["long_tail"]["sections"]:
        for group in section["groups"].values():
            assert set(group["scorers"]) == {"0.8k", "3k", "popularity", "repeat-last"}
            for figures in group["scorers"].values():
                for name in (f"{metric}@{k}" for metric in ("HR", "NDCG", "MRR") for k in (1, 5, 10, 50)):
                    assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]
            assert set(group["gain"]["NDCG@10"]) == {"slope", "ratio"}


@pytest.mark.slow
def test_seeds_are_reproducible_in_python_too(runs: Path) -> None:
    one, two, other = (run_tasks([runs], ["robustness"], seed).content() for seed in (3, 3, 4))
    assert one == two
    clean, corrupted = (
        [content["tasks"]["robustness"]["sections"][0]["groups"][name]["scorers"]["3k"] for content in (one, other)]
        for name in ("clean", "replaced 0.5")
    )
    assert clean[0]["NDCG@10"]["value"] == clean[1]["NDCG@10"]["value"]
    assert corrupted[0]["NDCG@50"]["value"] != corrupted[1]["NDCG@50"]["value"]


def test_cases_that_do_not_exist_get_a_line_and_the_rest_is_done(
    make_run: MakeRun, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    options = {"data__split__trajectory": 0, "data__split__held_out_users": 0, "data__domain_column": "null"}
    for size in ("0.8k", "3k"):
        make_run(tmp_path / "plain" / size, size, 1, **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectory.png").write_bytes(b"of an earlier report")
    lrec("tasks", "--runs", tmp_path / "plain", "--out", tmp_path / "out")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())["tasks"]
    notes = {name: " ".join(task["notes"]) for name, task in tasks.items()}
    assert "New users: none are held out. Train with --data.split.held_out_users" in notes["cold_start"]
    assert "No user has a trajectory. Train with --data.split.trajectory 10" in notes["trajectory"]
    assert "The data have no domains" in notes["transfer"]
    assert "Pre-training: no run is of one domain alone" in notes["transfer"]
    assert {name for name, task in tasks.items() if task["sections"]} == {"cold_start", "long_tail", "robustness"}
    findings = tasks["robustness"]["sections"][0]["findings"]  # every user's last item is new, so nobody scores
    assert findings[0] == "mix 0.3: the lost share is undefined, because a size scores 0 on clean histories."
    page = (tmp_path / "out" / "tasks.md").read_text()
    assert "nan" not in page
    assert all(note + "." in page for task in tasks.values() for note in task["notes"])
    assert not (tmp_path / "out" / "trajectory.png").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"data__max_len": 4}, "A network of max_len 4 has no room for a history before 4 steps"),
        ({"data__split__trajectory": 3}, "Trajectories of 3 items are too short for BLEU-4"),
    ],
)
def test_it_says_why_there_is_no_trajectory(
    options: dict, why: str, make_run: MakeRun, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    make_run(tmp_path / "short", "0.8k", 1, **options)
    names = "trajectory,long_tail,cold_start"
    said = lrec("tasks", "--runs", tmp_path / "short", "--tasks", names, "--out", tmp_path / "out")
    assert why in said
    assert "G4" in said
    new_users, _ = json.loads((tmp_path / "out" / "tasks.json").read_text())["tasks"]["cold_start"]["sections"]
    assert bool(new_users["findings"]) == ("data__max_len" not in options)  # no history is longer than five items


def test_a_user_s_own_task(
    runs: Path, ladder: Ladder, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).parents[3] / "examples" / "my_task.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    said = lrec("tasks", "--runs", runs, "--tasks", "my_task.repeat_consumption,long_tail", "--out", "out")
    tasks = json.loads(Path("out/tasks.json").read_text())["tasks"]
    assert list(tasks) == ["long_tail", "repeat_consumption"]
    groups = tasks["repeat_consumption"]["sections"][0]["groups"]
    split, store = ladder.split, ladder.split.store
    expected = {"again": 0, "new": 0}
    for user, position in zip(*split.test_targets, strict=True):
        items = split.catalogue_index_I[store.items_N[store.offsets_U1[user] :][: position + 1]]
        before = items[:-1][items[:-1] >= 0][-ladder.max_len :]
        if items[-1] >= 0 and len(before):
            expected["again" if items[-1] in before else "new"] += 1
    assert {name: group["cases"] for name, group in groups.items()} == expected
    assert min(expected.values()) > 0
    assert groups["new"]["scorers"]["repeat-last"]["HR@1"]["value"] == 0
    assert "Repeat consumption. Whether the history holds the target" in said
    assert Path("out/repeat_consumption.png").exists()


def test_a_task_that_does_not_fit_is_one_line(
    runs: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "from lrec.tasks.results import TaskResult\n"
        "number = 3\n"
        "class Kind: ...\n"
        "def nothing(ladder, seed):\n    return None\n"
        "def namesake(ladder, seed):\n    return TaskResult('long_tail', 'Mine')\n"
    )
    monkeypatch.chdir(tmp_path)
    for tasks, says in (
        ("my_tasks.missing", "--tasks my_tasks.missing: module 'my_tasks' has no attribute 'missing'"),
        ("./my_tasks.nothing", "--tasks ./my_tasks.nothing is no path such as my_parts.Mine"),
        ("my_nowhere.task", "--tasks my_nowhere.task: No module named 'my_nowhere'"),
        ("my_tasks.number", "--tasks my_tasks.number is int, not a function of the runs and a seed"),
        ("my_tasks.Kind", "--tasks my_tasks.Kind is a class, not a function of the runs and a seed"),
        ("my_tasks.nothing", "--tasks my_tasks.nothing returned NoneType, not a TaskResult"),
    ):
        assert refused("tasks", "--runs", runs, "--tasks", tasks, "--out", "out").startswith(f"lrec: error: {says}")
    with pytest.raises(UserError, match="its result is named long_tail, and so is the result of another task"):
        run_tasks([runs], ["my_tasks.namesake", "long_tail"])
    assert not Path("out").exists()


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(
    make_run: MakeRun, runs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = ("--out", tmp_path / "out")
    assert "--tasks tails: choose among cold_start, long_tail" in refused(
        "tasks", "--runs", runs, "--tasks", "tails", *out
    )
    assert "no such folder" in refused("tasks", "--runs", tmp_path / "nowhere", *out)
    assert "--seed must be at least 0" in refused("tasks", "--runs", runs, "--seed", -1, *out)
    (tmp_path / "empty").mkdir()
    assert "no run in or under this folder" in refused("tasks", "--runs", tmp_path / "empty", *out)
    other = make_run(tmp_path / "other", "0.8k", 1, data__max_len=9)
    assert "differ in their max_len" in refused("tasks", "--runs", runs, other, *out)
    split = make_run(tmp_path / "split", "0.8k", 1, data__split__held_out_users=0.3)
    assert "differ in their split" in refused("tasks", "--runs", runs, split, *out)
    own = make_run(tmp_path / "own", "0.8k", 1, data__only_domain="x")
    assert "add runs of all domains" in refused("tasks", "--runs", own, *out)
    kind = make_run(tmp_path / "kind", "3k", 3, model__exclude_seen="false")
    assert "differ in their model options" in refused("tasks", "--runs", runs, kind, *out)
    longer = make_run(tmp_path / "longer", "3k", 3, trainer__max_epochs=50)
    assert f"{longer} have the same N_body" in refused("tasks", "--runs", runs, longer, *out)
    warm = make_run(tmp_path / "warm", "3k", 3, runs / "0.8k-1")
    assert f"{warm} have the same N_body" in refused("tasks", "--runs", runs, warm, *out)
    hstu = {"model__architecture__attention": "hstu", "model__architecture__mlp": "none"}
    block = make_run(tmp_path / "block", "3k", 3, **hstu)
    said = refused("tasks", "--runs", runs, block, *out)
    assert f"{block} and {runs / '3k-1'} are both of size 3k, but have N_body" in said
    features = make_run(tmp_path / "features", "0.8k", 1, data__event_features__categories="[device]")
    other = make_run(tmp_path / "others", "3k", 1, data__event_features__lists="[device]")
    assert "differ in their features" in refused("tasks", "--runs", features, other, *out)
    types = make_run(tmp_path / "types", "0.8k", 1, data__event_column="device")
    aim = make_run(tmp_path / "aim", "3k", 1, data__event_column="device", data__target_events="[x0]")
    assert "differ in their target_events ([], ['x0'])" in refused("tasks", "--runs", types, aim, *out)
    cold = make_run(tmp_path / "cold", "0.8k", 1, data__cold_targets="dropped")
    assert "differ in their cold_targets" in refused("tasks", "--runs", runs, cold, *out)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs / "0.8k-1", unfinished)
    (unfinished / "checkpoints" / "best.ckpt").unlink()
    assert "has no checkpoints/best.ckpt" in refused("tasks", "--runs", unfinished, *out)
    assert not (tmp_path / "out").exists()


def test_a_diverged_run_is_left_out_by_name(runs: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "3k-2" / "points.jsonl").write_text(json.dumps({"status": "diverged"}) + "\n")
    lrec("tasks", "--runs", tmp_path / "runs", "--tasks", "long_tail", "--out", tmp_path / "out")
    assert "3k-2 diverged and was left out" in (tmp_path / "out" / "tasks.md").read_text()


def test_a_run_of_other_data_than_its_config_is_refused(
    make_run: MakeRun, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path / "run", "0.8k", 1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["k_core"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    said = refused("tasks", "--runs", run, "--trust", "--out", tmp_path / "out")
    assert re.search(r"was trained on other data .* \(data_hash \w{16} and \w{16}\)", said)


@pytest.mark.slow
def test_some_users_are_drawn_and_the_same_for_every_task(runs: Path, lrec: Callable[..., str], tmp_path: Path) -> None:
    lrec("tasks", "--runs", runs, "--out", tmp_path, "--users", 12)
    content = json.loads((tmp_path / "tasks.json").read_text())
    assert content["most_users"] == 12
    assert "Tested on at most 12 users" in (tmp_path / "tasks.md").read_text()
    robustness = content["tasks"]["robustness"]["sections"][0]["groups"]
    assert {group["users"] for group in robustness.values()} == {12}
    for task in content["tasks"].values():
        for section in task["sections"]:
            assert all(group["users"] <= 12 for group in section["groups"].values())
    again, all_users, more = (
        run_tasks([runs], ["long_tail"], users=users).content()["tasks"]["long_tail"] for users in (12, None, 10**6)
    )
    assert again == content["tasks"]["long_tail"]
    assert more == all_users != again


def test_users_are_drawn_among_those_who_have_a_target(
    make_run: MakeRun, tmp_path: Path, runs: Path, ladder: Ladder
) -> None:
    def drawn(folder: Path, users: int) -> Split:
        data = Data()
        return ladder_of([load_run(Run(folder), data)], data, users).split

    run = make_run(tmp_path / "run", "0.8k", 1, data__event_column="device", data__target_events="[x0, x1]")
    every, some = drawn(run, 10**6), drawn(run, 5)
    assert 5 < len(np.unique(every.test_targets.users_T)) < len(ladder.split.test_users)
    assert len(np.unique(some.test_targets.users_T)) == 5
    assert 5 < len(every.held_out_targets.users_T) == len(ladder.split.held_out_targets.users_T)
    assert len(some.held_out_targets.users_T) == 5
    random, split = np.random.default_rng(0), drawn(runs / "0.8k-1", 12)
    for before, after in ((ladder.split.test_users, split.test_users), (ladder.split.held_out_U, split.held_out_U)):
        users, mine = (np.flatnonzero(each) if each.dtype == bool else each for each in (before, after))
        assert mine.tolist() == np.sort(random.permutation(users)[:12]).tolist()


def test_sets_of_items_are_no_targets_of_tasks(runs: Path) -> None:
    """The first item of a window need not even be of the types in target_events."""
    data = Data()
    run = load_run(Run(runs / "0.8k-1"), data)
    opened = data.of(run.run)
    opened.cuts = replace(opened.cuts, sets_2=np.array([False, True]))
    with pytest.raises(UserError, match=r"set data\.split\.test_targets there to first, last, random or all"):
        ladder_of([run], data)


def test_users_that_are_drawn_keep_their_cut(ladder: Ladder) -> None:
    chosen_U = np.arange(ladder.split.store.n_users) % 2 == 0
    some = ladder.split.of_users(chosen_U)
    some.check()
    for before_U, after_U in ((ladder.split.test_U, some.test_U), (ladder.split.trajectory_U, some.trajectory_U)):
        assert (after_U[chosen_U] == before_U[chosen_U]).all()
        assert (after_U[~chosen_U] == -1).all()
    assert some.catalogue_V.tolist() == ladder.split.catalogue_V.tolist()
    assert (some.train_U == ladder.split.train_U).all()


def test_drawn_users_without_a_trajectory_are_no_reason_to_train_again(ladder: Ladder) -> None:
    few = ladder.split.of_users(ladder.split.trajectory_U < 0)
    with pytest.raises(NoCasesError, match=r"trajectory_min_length interactions, or draw more --users$"):
        trajectories(replace(ladder, split=few, most_users=3))


def test_one_user_is_said_in_the_singular(ladder: Ladder) -> None:
    assert "Tested on at most 1 user, and" in Report(replace(ladder, most_users=1), [], 0).markdown()
