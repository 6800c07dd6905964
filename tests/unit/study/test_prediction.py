"""What a study predicts, from made-up points."""

import json
from dataclasses import replace
from pathlib import Path

from lrec.model import cost
from lrec.run import Run
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.study.prediction import fit_ladder

ITEMS, TYPES = 50, 3


def test_all_parameters_of_large_runs_count_the_types_of_event_of_small_ones(tmp_path: Path) -> None:
    """How many types there are is known only once the data have been read."""
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml"]
    sizes = ["0.8k", "1.7k", "3k", "4.8k", "6.9k"]
    study = Study("types", configs, sizes=sizes, out=tmp_path, holdout=1, fractions=(1.0,), law="lsrm", x="N_total")
    runs = planned_runs(study)
    nets = {run.name: replace(run.network(ITEMS), event_types=TYPES) for run in runs}
    for run in runs[:-1]:
        n_total = cost.n_total(nets[run.name])
        point = {"schema": 1, "best": True, "status": "finished", "N_total": n_total, "test_loss": 3 + 100 / n_total}
        point |= {"N_head": ITEMS * nets[run.name].width, "d_model": nets[run.name].width}
        (tmp_path / "runs" / run.name).mkdir(parents=True)
        Run(tmp_path / "runs" / run.name).points_file.write_text(json.dumps(point) + "\n")
    (predicted,) = fit_ladder(study, runs, []).predictions
    assert predicted.x == cost.n_total(nets[runs[-1].name])
