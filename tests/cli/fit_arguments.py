"""Arguments of `lrec fit` on a small log, for tests of what a network reads."""

from pathlib import Path


def fit_arguments(run: Path, log: Path, **options: object) -> list[str]:
    """Arguments of a run in a folder; `options` replace or extend the usual ones, and a__b stands for a.b."""
    usual = {
        "data__path": log,
        "data__time_column": "timestamp",
        "data__data_dir": log.parent / "stores",
        "data__max_len": 12,
        "data__targets_per_step": 100,
        "model__size": "3k",
        "trainer__enable_progress_bar": "false",
        "trainer__default_root_dir": run,
    }
    named = {name.replace("__", "."): value for name, value in (usual | options).items()}
    return ["fit", "--config=data/csv.yaml", "--config=trainer/laptop.yaml", *(f"--{n}={v}" for n, v in named.items())]
