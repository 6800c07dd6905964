"""`lrec export --card`: what the card of an exported network says, and when it is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lrec.cli import main
from lrec.errors import UserError
from lrec.serving import card as serving_card
from lrec.serving.export import export, load

OPTIONS = ["--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--data.n_users=200", "--data.n_items=40"]
OPTIONS += ["--data.length=12", "--data.targets_per_step=256", "--model.size=3k", "--trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in the folder of a study."""
    folder = tmp_path_factory.mktemp("studies")
    run = folder / "study" / "runs" / "large-seed1"
    main(["fit", *OPTIONS, f"--data.data_dir={folder}", f"--trainer.default_root_dir={run}"])
    return run


def card_of(run: Path, out: Path, lrec: Callable[..., str]) -> str:
    printed = lrec("export", "--ckpt_path", run, "--out", out, "--card")
    assert f"model card written to {out / 'model.md'}" in printed
    return (out / "model.md").read_text()


def test_a_card_tells_the_data_and_the_test(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    tested = json.loads((run / "metrics.json").read_text())
    card = card_of(run, tmp_path, lrec)
    assert tested["data_hash"] in card
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.*) \|$", card, re.MULTILINE))
    assert rows["users"] == "200"
    assert rows["time"] == "0 to 11"
    assert rows["split"].startswith("LastItems(")
    assert "200 test" in rows["parts"]
    for scorer in ("model", "popularity", "markov", "item-graph"):
        loss, hit_rate, *_ = rows[scorer].split(" | ")
        assert loss == f"{tested[scorer]['loss']:.4f} ± {1.645 * tested[scorer]['loss_se']:.4f}"
        share = tested[scorer]["HR@10"]
        assert hit_rate == f"{share:.4f} ± {1.645 * (share * (1 - share) / 200) ** 0.5:.4f}"
    better = [name for name in ("popularity", "markov") if tested[name]["HR@10"] >= tested["model"]["HR@10"]]
    assert all(name in card.partition("## Limits")[2] for name in better)
    assert "trained alone: no study" in card
    assert "1 block of width 16, 1 head; " in rows["network"]
    (update := tmp_path / "day1").mkdir()
    (update / "update.json").write_text(json.dumps({"kept": "old", "serve": str(run)}))
    assert card_of(update, tmp_path / "model", lrec) == card, "the folder of an update has the card of the kept run"


def test_the_interval_of_a_share_of_sets_counts_sets(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    tested = json.loads((run / "metrics.json").read_text())
    sets = {"HR@10": 0.5, "targets": 200, "targets_sets": 50}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(tested | {"model": tested["model"] | sets}))
    assert f"0.5000 ± {1.645 * (0.5 * 0.5 / 50) ** 0.5:.4f}" in card_of(tmp_path / "run", tmp_path, lrec)


def test_a_card_tells_which_targets_and_that_their_time_was_known(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    tested = json.loads((run / "metrics.json").read_text())
    model = load(run)
    said = (r"| targets | only events of type a\|b, rent |", r"| event types | a\|b, rent, view |")
    said += ("the network knew the time of each target",)
    assert not any(each in serving_card.card_of(model, run) for each in said)
    tested["data"]["target_events"] = ["a|b", "rent"]
    tested["data"]["facts"]["event_types"] = ["a|b", "rent", "view"]
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(tested))
    model = replace(model, about=model.about | {"architecture.time": "request"})
    card = serving_card.card_of(model, tmp_path / "run")
    assert all(each in card for each in said)


def test_a_card_tells_what_its_study_forecast(
    run: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = json.loads((run / "points.jsonl").read_text().splitlines()[-1])
    study = tmp_path / "study"
    shutil.copytree(run.parents[1], study)
    planned = {"name": run.name, "ladder": "", "held_out": True, "horizon": 0.5}
    runs = [planned | {"name": "shorter", "horizon": 0.25}, planned]
    (study / "study.json").write_text(json.dumps({"name": "shoes", "grid": {"runs": runs}}))
    place = {"x": point["N_body"], "d": None, "predicted": 3.0, "low": 0.5, "high": 9.0}
    ladder = {"ladder": "", "x": "N_body", "y": "test_loss", "predictions": [place | {"x": 1.0}, place]}
    (study / "prediction.json").write_text(json.dumps({"ladders": [ladder]}))
    (study / "fit").mkdir()
    (study / "fit" / "fit.json").write_text(json.dumps({"verdict": ["The forecast holds."]}))
    card = card_of(study / "runs" / run.name, tmp_path, lrec)
    assert "a test loss of 3.0000 (90 %: 0.5000 to 9.0000)" in card
    assert f"it has {point['test_loss']:.4f}, within the interval. The forecast holds." in card
    monkeypatch.chdir(study / "runs" / run.name / "checkpoints")
    assert all(card_of(Path(here), tmp_path, lrec) == card for here in ("..", "best.ckpt"))
    late = {"ladders": [ladder], "trained_before": [run.name]}  # written again, for a study that has grown
    (study / "prediction.json").write_text(json.dumps(late))
    card = card_of(study / "runs" / run.name, tmp_path, lrec)
    assert "run of the study shoes. The forecast holds." in card


def test_no_export_leaves_the_card_of_an_earlier_one_beside_it(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    card_of(run, tmp_path, lrec)
    before = (tmp_path / "model.safetensors").read_bytes()
    export = ("export", "--ckpt_path", run, "--out", tmp_path)
    assert "model.md is the card of an earlier export: write a new one with --card" in refused(*export)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    (tmp_path / "model.md").write_text("# Notes of mine")
    lrec(*export)


@pytest.mark.slow
def test_an_export_that_is_refused_writes_no_card(
    run: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.serving.onnx.LARGEST", 0)
    assert "holds less than 2" in refused("export", "--ckpt_path", run, "--out", tmp_path / "model.onnx", "--card")
    assert not any(tmp_path.iterdir())


def test_a_card_is_refused_without_the_test_that_it_tells(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", alone)
    export = ["export", "--out", tmp_path / "model", "--card", "--ckpt_path"]
    assert "neither a run's folder nor a checkpoint in one" in refused(*export, alone)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    assert "holds no test of this network: lrec test --config" in refused(*export, tmp_path / "run")
    config = run / "config.yaml"
    lrec("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "two", "--trainer.max_epochs=2")
    checkpoints = tmp_path / "two" / "checkpoints"
    shutil.copy(run / "checkpoints" / "best.ckpt", checkpoints / "early.ckpt")
    says = f"lrec test --config {tmp_path / 'two' / 'config.yaml'} --ckpt_path"
    assert f"{says} {checkpoints / 'early.ckpt'}" in refused(*export, checkpoints / "early.ckpt")
    lrec("test", "--config", tmp_path / "two" / "config.yaml", "--ckpt_path", checkpoints / "early.ckpt")
    assert f"{says} {checkpoints / 'best.ckpt'}" in refused(*export, tmp_path / "two")
    assert "early.ckpt is not the best checkpoint of its run" in refused(*export, checkpoints / "early.ckpt")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["model.json", "model.md"])
def test_an_export_loses_no_file_of_the_user(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name} is not from lrec export, and would be lost"):
        export(run, tmp_path, card=True)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {name: "{}"}


@pytest.mark.parametrize("name", ["model.json", "model.md"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_export(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder"):
        export(run, tmp_path, card=True)
    assert [each.name for each in tmp_path.iterdir()] == [name]
