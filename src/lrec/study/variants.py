"""The variants of a study beside each other: means over seeds, their noise, and differences paired by seed."""

import math
from statistics import mean, stdev

from scipy.special import stdtrit

from lrec.common.text_tables import rows_table
from lrec.run import Point
from lrec.study.grid import PlannedRun

METRICS = {"test loss": "test/loss", "NDCG@10": "test/NDCG@10", "NDCG@10_unseen": "test/NDCG@10_unseen"}
CONFIDENCE = 0.95


def variants_table(runs: list[PlannedRun], points: dict[str, Point]) -> str:
    """Markdown: a row per fraction, size and variant, and what stands out of the seeds' noise; "" with one variant.

    Mean ± standard deviation over the seeds; differences from the first variant over the seeds that finished in both,
    ± their standard error. A difference stands out where a paired t-test at 95 % says so. A variant of another domain
    has other targets, and no differences.
    """
    variants = list(dict.fromkeys(run.variant for run in runs))
    if len(variants) < 2:
        return ""
    base = variants[0]
    domains = {run.variant: run.config.value("data.only_domain") for run in runs}
    head = ["fraction", "size", "variant", "seeds"]
    rows = [head + [title for metric in METRICS for title in (metric, f"against {base}")]]
    compared, standing_out = 0, []
    for fraction, size in dict.fromkeys((run.fraction, run.size) for run in runs):
        finished = {
            variant: {
                run.seed: points[run.name]
                for run in runs
                if (run.fraction, run.size, run.variant) == (fraction, size, variant) and not points[run.name].diverged
            }
            for variant in variants
        }
        for variant, by_seed in finished.items():
            comparable = variant != base and domains[variant] == domains[base]
            cells = [f"{fraction:g}", size, variant, str(len(by_seed))]
            for title, name in METRICS.items():
                values = {seed: point.metric(name) for seed, point in by_seed.items()}
                shared = [seed for seed in values if seed in finished[base]]
                differences = [values[seed] - finished[base][seed].metric(name) for seed in shared]
                cells.append(_mean(list(values.values())))
                cells.append(_mean(differences, "+", of_mean=True) if comparable else "")
                if comparable and len(differences) > 1:
                    compared += 1
                    if _stands_out(differences):
                        standing_out.append(f"{title} of {variant} at {size} ({mean(differences):+.4f})")
            rows.append(cells)
    table = rows_table(rows, text=(2,))
    if not compared:
        return "\n".join([table, "", "No difference has two seeds, so none can be set against the seeds' noise."])
    verdict = "; ".join(standing_out) or "none"
    note = (
        f"Of {compared} differences from {base}, those that stand out of the seeds' noise (paired t-test, 95 %; "
        f"by chance alone {(1 - CONFIDENCE) * compared:.1f} would): {verdict}."
    )
    return "\n".join([table, "", note])


def _mean(values: list[float], sign: str = "", of_mean: bool = False) -> str:
    """Mean ± standard deviation, or ± that of the mean. One value has no deviation; no value is an empty cell."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:{sign}.4f}"
    return f"{mean(values):{sign}.4f} ± {stdev(values) / (math.sqrt(len(values)) if of_mean else 1):.4f}"


def _stands_out(differences: list[float]) -> bool:
    error = stdev(differences) / math.sqrt(len(differences))
    return abs(mean(differences)) > float(stdtrit(len(differences) - 1, (1 + CONFIDENCE) / 2)) * error
