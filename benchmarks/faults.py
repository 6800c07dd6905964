"""Does a study's report say that a ladder was trained badly? Faults that are put into it, over ten draws of a data set.

A ladder of five sizes on 300 items of the embedded set (`configs/data/synthetic.yaml`), its rate tuned: as it is; with
the rates of the two largest fitted sizes four times too high; with steps of 4,096 targets; with dropout of 0.3 at the
middle size. Reported means a warning of the study: under-trained, mistuned, out of line, or too few steps.

    python benchmarks/faults.py --studies DIR        22 minutes of two cores
    python benchmarks/faults.py --page
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lrec.common.files import write_text
from lrec.common.text_tables import rows_table
from lrec.study.options import ladder_n_body

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "faults.jsonl", HERE / "faults.md"
SIZES = ["1x12", "1x20", "1x32", "1x48", "1x72"]
DROPOUTS = ("embedding", "attention.first", "attention.last", "residual.first", "residual.last")
STUDY: dict[str, Any] = {
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": SIZES,
    "law": None,
    "holdout": 0,
    "tune": ["lr"],
    "jobs": 2,
    "options": {
        "data.n_items": 300,
        "data.n_users": 8_000,
        "data.targets_per_step": 112,
        "trainer.max_epochs": 1,
        "trainer.precision": "32-true",
        "trainer.enable_progress_bar": False,
    },
}
WARNINGS = {
    "under-trained": r"\*\*Under-trained",
    "mistuned": r"\*\*Mistuned",
    "out of line": r"\*\*Out of line",
    "few steps": r"a run has no more than",
}


def faulty(fault: str, rule: list[float]) -> dict[str, Any]:
    """What the fault changes, with the rule of the rate that tuning has found."""
    factor, exponent, _ = rule
    if fault == "rates":
        return {
            "size_options": {
                size: {"model.optimizer.lr": 4 * factor * ladder_n_body(size) ** exponent} for size in SIZES[3:]
            }
        }
    if fault == "steps":
        return {"options": STUDY["options"] | {"data.targets_per_step": 4096}}
    if fault == "dropout":
        return {"size_options": {SIZES[2]: {f"model.dropout.{where}": 0.3 for where in DROPOUTS}}}
    return {}


def warnings_of(fault: str, seed: int, studies: Path) -> list[str]:
    """Train a study with a fault, and read its warnings; the trials of the one without a fault serve all."""
    name = f"{seed}-{fault}"
    clean, mine = (studies / f"{seed}-{which}-tuning" for which in ("none", fault))
    if fault in ("rates", "dropout") and not mine.exists():
        shutil.copytree(clean, mine)
    rule = [0.0, 0.0, 0.0]
    if fault != "none":
        rule = json.loads((clean / "tuned.json").read_text())["rules"]["model.optimizer.lr"]
    study = STUDY | {"name": name, "out": str(studies / name), "seeds": [seed]} | faulty(fault, rule)
    study["options"] = study["options"] | {"data.process_seed": seed, "data.data_dir": str(studies / "data")}
    file = studies / f"{name}.yaml"
    file.write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "lrec", "scaling", "study", "--config", str(file)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    said = printed + (studies / name / "report.md").read_text()
    return [warning for warning, pattern in WARNINGS.items() if re.search(pattern, said)]


def page(rows: list[dict[str, Any]]) -> str:
    """How often each fault was reported, and how."""
    table = [["fault", "seeds", "reported", *WARNINGS]]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        mine = [row["warnings"] for row in rows if row["fault"] == fault]
        counts = [sum(warning in warnings for warnings in mine) for warning in WARNINGS]
        table.append([fault, str(len(mine)), str(sum(map(bool, mine))), *map(str, counts)])
    title, method, commands = __doc__.rstrip().split("\n\n")
    return "\n\n".join([f"# {title}", method.replace("\n", " "), commands, rows_table(table, text=(0,))]) + "\n"


def main() -> None:
    """Train what the results lack, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    known = {(row["fault"], row["seed"]) for row in rows}
    for seed in range(options.seeds if options.studies else 0):
        options.studies.mkdir(parents=True, exist_ok=True)
        for fault in ("none", "rates", "steps", "dropout"):
            if (fault, seed) not in known:
                rows.append({"fault": fault, "seed": seed, "warnings": warnings_of(fault, seed, options.studies)})
                print(rows[-1], flush=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    if options.page:
        write_text(PAGE, page(rows))


if __name__ == "__main__":
    main()
