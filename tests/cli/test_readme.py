"""The two commands that the README begins with; every shipped configuration parses; every command has --help."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.cli import LIGHTNING_COMMANDS, OWN_COMMANDS, main
from lrec.options.config_files import find_config

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def test_the_readme_has_the_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "pip install -e . && lrec scaling study --config configs/study/quickstart.yaml\n" in readme
    assert 'pip install -e ".[dev]" && pytest\n' in readme


def test_the_readme_names_the_columns_of_the_configuration() -> None:
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    named = re.search(r"not called (\w+), (\w+) and (\w+)", readme)
    options = (REPOSITORY / "configs" / "data" / "csv.yaml").read_text()
    assert named is not None
    assert list(named.groups()) == re.findall(r"_column: (\w+)", options)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_shipped_configurations_parse(config: Path, parse: Callable[[list[str]], None]) -> None:
    if config.parent.name in ("study", "backtest"):
        parse([*({"study": ["scaling"]}.get(config.parent.name, [])), config.parent.name, "--config", str(config)])
        return
    missing = {"data": "--config=data/synthetic.yaml", "model": "--config=model/98k.yaml"}
    missing.pop(config.parent.name, None)
    if config.parent.name == "recipes":
        missing = {}
    parse(["fit", f"--config={config}", *missing.values()])


def test_shipped_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/study/quickstart.yaml", "study/quickstart.yaml"):
        assert find_config(name).read_text() == (REPOSITORY / "configs" / "study" / "quickstart.yaml").read_text()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "quickstart.yaml").write_text("mine: true\n")
    assert find_config("study/quickstart.yaml").read_text() == "mine: true\n"


@pytest.mark.parametrize("command", [[], *([c] for c in LIGHTNING_COMMANDS), *(c.split() for c in OWN_COMMANDS)])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if command:
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
    else:
        main([])
    printed = capsys.readouterr().out
    assert "lrec" in printed
    if command and command[0] not in LIGHTNING_COMMANDS:
        options = re.findall(r"^  (-.*|\w+ *)$", printed, re.MULTILINE)
        assert options


@pytest.mark.parametrize("group", ["data", "scaling"])
@pytest.mark.parametrize("help_option", [[], ["--help"]])
def test_a_group_lists_its_commands(group: str, help_option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([group, *help_option])
    listed = re.findall(r"^  (\w+ \w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [name for name in OWN_COMMANDS if name.startswith(f"{group} ")]


def test_help_says_what_an_option_of_several_paths_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tasks", "--help"])
    assert "folders with such runs" in " ".join(capsys.readouterr().out.split())


def test_data_prepare_s_help_begins_with_the_file_and_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    options = re.findall(r"^  --([\w.]+)", capsys.readouterr().out, re.MULTILINE)
    assert options[1:5] == ["data.path", "data.user_column", "data.item_column", "data.time_column"]
