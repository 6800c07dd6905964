"""Rows of a page: measured in processes of their own and kept in a file, or added one by one; and the machine."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case", bound=tuple)
HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes to the system at once


def measured(
    cases: Sequence[Case], results: Path, measure: Callable[[Case], Any], done: Callable[[], bool] = lambda: False
) -> dict[Case, Any]:
    """The rows of the results file, and of `measure` for each case that the file lacks, until `done` returns True."""
    lines = results.read_text().splitlines() if results.exists() else []
    of_line = {json.dumps(case): case for case in cases}
    rows = {of_line[json.dumps(case)]: row for case, row in map(json.loads, lines) if json.dumps(case) in of_line}
    for case in cases:
        if case in rows or done():
            continue
        rows[case] = measure(case)
        with results.open("a") as file:
            file.write(json.dumps([case, rows[case]]) + "\n")
        print(f"{len(rows)}/{len(cases)} {case}", flush=True)
    return rows


def in_new_processes(script: str, arguments: list[str], case: Case, processes: int, variables: dict[str, str]) -> Any:
    """What a script with `--case` prints as JSON: in a fresh process, or in several that torchrun starts."""
    command = [script, "--case", json.dumps(case), *arguments]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def tell(found: Any) -> None:
    """Print what one process of `in_new_processes` has found, if it is the first."""
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) * 1024


def forget_largest() -> None:
    """Reset VmHWM."""
    Path("/proc/self/clear_refs").write_text("5")


def add_row(script: str, header: str, *cells: object) -> None:
    """Add a row to the page of a script, which begins with the header: the cells, the machine and the commit."""
    page = Path(script).with_suffix(".md")
    if not page.exists():
        page.write_text(header)
    with page.open("a") as out:
        out.write(f"| {' | '.join(map(str, (*cells, MACHINE, commit())))} |\n")


MACHINE = f"{os.cpu_count()} cores {platform.machine()}"


def here() -> str:
    """The machine and the versions, as a line of a page."""
    return f"{MACHINE}, Python {platform.python_version()}, torch {version('torch')}, commit {commit()}"


def commit() -> str:
    """The commit that is measured."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
