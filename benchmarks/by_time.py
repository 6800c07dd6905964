"""MovieLens-1M split by time: the recipe's metrics on two kinds of test targets, three seeds, and published metrics.

`configs/recipes/ml-1m-time.yaml` is trained once for each seed, then tested on each user's last item and on all
successive items. A run that is already in the folder --runs is only tested. The test results are kept in
benchmarks/by_time/, and this page is written from them.

    python benchmarks/by_time.py --data ml-1m_ratings.dat.xz --runs runs/by-time --seeds 1 2 3
    python benchmarks/by_time.py
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from lrec.common.files import write_json, write_text
from lrec.common.text_tables import rows_table
from lrec.run import Run

ROOT = Path(__file__).resolve().parents[1]
PAGE, OUTCOMES = ROOT / "benchmarks/by_time.md", ROOT / "benchmarks/by_time"
# For each target: `test_targets`, the end of the names of its metrics, and the best published HR@10 / NDCG@10.
TARGETS = {
    "last": ("last", "", "0.1778 / 0.1014"),
    "all, mean over users": ("all", "_by_user", "0.2094 / 0.1142"),
    "all, mean over targets": ("all", "", "0.2062 / 0.1121"),
}


def measured(data: Path, run: Run, seed: int, options: list[str]) -> dict[str, Any]:
    """Metrics among unseen items, by target and scorer; a run that is not there is trained first."""
    lrec, folder = [sys.executable, "-m", "lrec"], f"--trainer.default_root_dir={run.folder}"
    if not (run.folder / "ended").is_file():
        recipe = ["fit", f"--config={ROOT / 'configs/recipes/ml-1m-time.yaml'}", f"--data.path={data}", *options]
        subprocess.run([*lrec, *recipe, f"--seed_everything={seed}", f"--data.seed={seed}", folder], check=True)
    outcome: dict[str, Any] = {"seed": seed, "options": options}
    for target in ("last", "all"):
        test = ["test", f"--config={run.folder / 'config.yaml'}", "--data.test_users=all", folder]
        subprocess.run([*lrec, *test, f"--data.split.test_targets={target}"], check=True)
        found = json.loads((run.folder / "metrics.json").read_text())
        outcome |= {key: found[key] for key in ("data_hash", "config_hash", "commit")}
        outcome[target] = {name: _unseen(each) for name, each in found.items() if isinstance(each, dict)}
    return outcome


def _unseen(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if "@10_unseen" in name or name == "targets"}


def page(outcomes: list[dict[str, Any]]) -> str:
    rows = [["target of the test", "time read", "seeds", "HR@10", "NDCG@10", "best published", "item graph", "7 days"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        reads = "no" if "--model.architecture.time=none" in outcome["options"] else "gaps between past events"
        groups.setdefault(reads, []).append(outcome)
    for shown, (target, by, published) in TARGETS.items():
        for reads, group in groups.items():
            cells = []
            for figure in ("HR@10", "NDCG@10"):
                name = f"{figure}_unseen{by}"
                values = [outcome[target]["model"][name] for outcome in group]
                error = group[0][target]["model"].get(f"{name}_se")
                each = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
                cells.append(f"{mean(values):.4f}{f' ± {error:.4f}' if error else ''}{each}")
            beside = [
                " / ".join(f"{group[0][target][scorer][f'{figure}_unseen{by}']:.4f}" for figure in ("HR@10", "NDCG@10"))
                for scorer in ("item-graph", "recent-popularity")
            ]
            rows.append([shown, reads, str(len(group)), *cells, published, *beside])
    title, method, commands = __doc__.rstrip().split("\n\n")
    head = [f"# {title.rstrip('.')}", method.replace("\n", " "), commands]
    return "\n\n".join([*head, rows_table(rows, text=(0, 1)), READ]) + "\n"


READ = (
    "Ranks are among the items that a user has not had. A figure is the mean over seeds; the brackets have each seed. "
    "The number after ± is the standard error of the first seed, over users (in the last two rows, over targets). Best "
    "published is the best of any model in arXiv 2507.16289, chosen by its test figures. The recipe was fixed before "
    "its test: network and rates are those of `ml-1m-hstu`, and each user's last item before the test chose the "
    "checkpoint. 7 days is the popularity in the last 7 days before the test."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/by-time"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--no_time", action="store_true", help="leave the gaps between past events out")
    asked = parser.parse_args()
    name, options = ("no-time", ["--model.architecture.time=none"]) if asked.no_time else ("lti", [])
    OUTCOMES.mkdir(exist_ok=True)
    for seed in asked.seeds:
        outcome = measured(asked.data, Run(asked.runs / f"{name}-{seed}"), seed, options)
        write_json(OUTCOMES / f"{name}-seed{seed}.json", outcome)
    outcomes = [json.loads(path.read_text()) for path in sorted(OUTCOMES.glob("*.json"))]
    write_text(PAGE, page(outcomes))


if __name__ == "__main__":
    main()
