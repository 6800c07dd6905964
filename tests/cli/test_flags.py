"""Flags and entries of dictionaries among the options of lrec's own commands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.cli import own_command
from lrec.errors import UserError
from lrec.options.config_files import with_shipped_configs


def test_a_flag_alone_is_true() -> None:
    for given, value in ((["--exclude_seen"], True), (["--exclude_seen", "false"], False), ([], True)):
        _, parser, options = own_command(["recommend", "--ckpt_path=p", *given, "--histories=h", "--k", "3"])
        parsed = parser.parse_args(options)
        assert parsed.exclude_seen is value
        assert parsed.k == 3
    _, parser, options = own_command(["scaling", "study", "--dry_run"])
    assert options == ["--dry_run", "true"]


@pytest.mark.parametrize("option", ["--trainer.max_epochs=3", "--trainer.max_epochs 3"])
def test_an_option_of_the_runs_is_refused_with_its_name_in_a_study(refused: Callable[..., str], option: str) -> None:
    error = refused("scaling", "study", "--config=study/quickstart.yaml", *option.split(), "--dry_run")
    assert error == "lrec: error: --trainer.max_epochs is an option of the runs: write --options.trainer.max_epochs"


def test_entries_of_a_dictionary_add_up(
    log_csv: Path, lrec: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"user": "who", "item": "what"}
    columns = [f"--options.data.{column}_column={name}" for column, name in names.items()]
    study = ("scaling", "study", "--config=study/csv.yaml", "--options.data.path", log_csv, *columns)
    sizes = ("--sizes=[0.8k,1.7k]", "--holdout=0", "--law=null", "--rules.model.optimizer.lr=[0.1,-0.5]")
    said = lrec(*study, "--options.data.time_column", "when", *sizes, "--options.model.optimizer.lr=0.3", "--dry_run")
    assert f"not used: --data.path interactions.csv, because of --options.data.path {log_csv}" in said
    assert "not used: --options.model.optimizer.lr 0.3, because of --rules.model.optimizer.lr" in said
    assert len(list((tmp_path / "data").glob("log-*"))) == 1


@pytest.mark.parametrize("option", ["--variants.a.trainer.max_epochs=1", "--size_options.3k.model.dropout 0"])
def test_options_of_one_variant_or_size_are_given_together(option: str) -> None:
    with pytest.raises(
        UserError, match=r"a second option would replace the first: write --\w+ '{NAME: {OPTION: VALUE}}'"
    ):
        own_command(["scaling", "study", *option.split()])
    assert own_command(["scaling", "study", "--variants.a", "{}"])[2] == ["--variants.a", "{}"]


def test_a_name_that_is_a_number_is_a_name(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sizes: []\nvariants: {1: {}, 2: {}}\n")
    assert "--sizes []: name at least one" in refused("scaling", "study", f"--config={tmp_path / 'mine.yaml'}")


def test_a_value_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--config", "options.yaml", "--out", "options.study", "--dry_run"]
    assert own_command(["scaling", "study", *given])[2] == [*given, "true"]


@pytest.mark.parametrize("name", ["#time", "&time", " #1"])
def test_a_name_may_begin_like_a_comment_or_an_anchor(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"data:\n  class_path: lrec.InteractionsDataModule\n  init_args: {{path: x.csv, time_column: '{name}'}}\n"
    )
    for given in (
        [f"--config={tmp_path / 'mine.yaml'}"],
        ["--config=configs/data/csv.yaml", "--data.path=x.csv", "--data.time_column", name],
    ):
        _, parser, options = own_command(["data", "prepare", *with_shipped_configs(given)])
        assert parser.parse_args(options).data.init_args.time_column == name


def test_dates_without_quotes_in_a_run_s_configuration(tmp_path: Path) -> None:
    split = "split: {class_path: lrec.GlobalTemporal, init_args: {validate_from: 2020-09-13, test_from: 2020-09-14}}"
    (tmp_path / "run.yaml").write_text(f"model: {{size: 3k}}\ndata:\n  {split}\n")
    _, parser, options = own_command(
        ["data", "prepare", "--config=configs/data/csv.yaml", f"--config={tmp_path / 'run.yaml'}"]
    )
    init = parser.parse_args(with_shipped_configs(options)).data.init_args
    assert init.split.init_args.validate_from == "2020-09-13"


def test_data_are_prepared_from_a_run_s_configuration(
    log_csv: Path, lrec: Callable[..., str], refused: Callable[..., str], tmp_path: Path
) -> None:
    own = ["--data.user_column=who", "--data.item_column=what", f"--data.data_dir={tmp_path}", f"--data.path={log_csv}"]
    prepare = ["data", "prepare", "--config=recipes/beauty-sasrec.yaml", "--data.format=csv", "--data.time_column=when"]
    assert "300" in lrec(*prepare, *own)
    (tmp_path / "mine.yaml").write_text("data: {max_len: 7}\nmodle: {size: 3k}\n")
    assert "modle" in refused(*prepare, *own, f"--config={tmp_path / 'mine.yaml'}")
