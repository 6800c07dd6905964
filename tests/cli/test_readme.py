"""Every command printed in the README and the docs parses; every shipped configuration does."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrec.cli import LIGHTNING_COMMANDS, OWN_COMMANDS, find_config, main, own_command, with_shipped_configs

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def commands() -> Iterator[str]:
    """The lrec commands of the bash blocks."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    if command.strip().startswith("lrec "):
                        yield command.strip()


def parse(arguments: list[str], tmp_path: Path) -> None:
    """Parse as `lrec` would, without running anything."""
    from lrec.lightning_cli import compose

    if arguments[0] in LIGHTNING_COMMANDS:
        options = with_shipped_configs(arguments[1:])
        compose(options, arguments[0])
        return
    _, parser, options = own_command(arguments)
    parser.parse_args(with_shipped_configs(options))


def test_the_readme_has_the_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "pip install -e . && lrec scaling study --config configs/study/quickstart.yaml\n" in readme
    assert 'pip install -e ".[dev]" && pytest\n' in readme


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_printed_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    arguments = shlex.split(command)[1:]
    # A run's own configuration is there once the run is: any whole one stands in for it.
    run = tmp_path / "config.yaml"
    run.write_text("data: lrec.SyntheticDataModule\nmodel: {size: 98k}\n")
    parse([str(run) if re.fullmatch(r"runs/.*config\.yaml", a) else a for a in arguments], tmp_path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_shipped_configurations_parse(config: Path, tmp_path: Path) -> None:
    if config.parent.name == "study":
        parse(["scaling", "study", "--config", str(config)], tmp_path)
        return
    missing = {"data": "--config=data/synthetic.yaml", "model": "--config=model/98k.yaml"}
    missing.pop(config.parent.name, None)
    parse(["fit", f"--config={config}", *missing.values()], tmp_path)


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
