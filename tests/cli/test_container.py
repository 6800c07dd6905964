"""The Dockerfile, without Docker: its instructions are known ones, and what it copies is enough to build the wheel."""

import json
import re
import shlex
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def test_its_instructions_are_docker_s_and_begin_with_an_image() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM"
    assert set(names) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    given = {text.partition("=")[0] for name, text in instructions() if name in ("ARG", "ENV")}
    assert {name for _, text in instructions() for name in re.findall(r"\$\{(\w+)\}", text)} <= given


def test_it_copies_what_the_wheel_is_built_from() -> None:
    copied = {path for name, text in instructions() if name == "COPY" for path in shlex.split(text)[:-1]}
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert all((REPOSITORY / path).exists() and path not in ignored for path in copied)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["project"]["readme"], *project["project"]["license-files"], *wheel["force-include"]]
    needed += [package.split("/")[0] for package in wheel["packages"]]
    assert {"pyproject.toml", *needed} <= copied


def test_it_installs_the_torch_that_lrec_needs_and_starts_lrec() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    torch = next(each for each in project["project"]["dependencies"] if each.startswith("torch>"))
    assert any(torch in shlex.split(text) for name, text in instructions() if name == "RUN")
    assert json.loads(dict(instructions())["ENTRYPOINT"]) == ["lrec"]
