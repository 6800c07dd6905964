"""Write docs/results/costs.md from the committed points: what a run costs and reaches, by data set and size.

    python benchmarks/costs.py

Seconds and HR@10 are means over the seeds of the runs with all data. Memory is computed, as by `lrec sizes`, from the
shape of the network and the targets of a step. Nothing in the rows for GPUs is measured.
"""

import math
from collections import defaultdict
from pathlib import Path
from statistics import mean

from results import STUDIES, name_of

from lrec.common.files import write_text
from lrec.common.text_tables import lasting, rows_table
from lrec.model import cost, memory
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import find_size
from lrec.run import Point, read_points_file

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "costs.md"
SHOWN = 5  # sizes of a set
PROCESS_GIB = 0.5  # in addition to a step: the interpreter and its libraries (docs/sizes.md)
ON_GPU = ("9.4m", "75m", "829m")
GPU_SETS = ("Go", "Decks", "MovieLens-1M")
FLOPS_PER_S, GPU_TARGETS = 0.4 * 989e12, 65_536  # of an H100, as `lrec scaling plan` assumes; targets of a step


def tested(file: Path) -> list[list[Point]]:
    """The results of a study's runs with the most data: one list for each size, in order of size."""
    points = [point for point in read_points_file(file) if point.best and point.test_loss is not None]
    most, by_size = max(point.U for point in points), defaultdict(list)
    for point in points:
        if most == point.U:
            by_size[point.N_body].append(point)
    return [by_size[size] for size in sorted(by_size)]


def network(point: Point) -> TransformerConfig:
    """The network of a point; the longest input follows from the number of parameters that are left for positions."""
    shape = (point.n_layers, point.d_model, point.n_heads)
    one = TransformerConfig(point.N_head // point.d_model, 1, *shape)
    return TransformerConfig(one.n_items, 1 + (point.N_total - cost.n_total(one)) // point.d_model, *shape)


def row(name: str, runs: list[Point]) -> list[str]:
    """A row of the table, for the runs of one size."""
    point, config = runs[0], network(runs[0])
    precision: memory.Precision = "bf16-mixed" if point.precision == "bf16-mixed" else "32-true"
    step = memory.of_step(config, math.ceil(point.D / point.step), precision)
    seconds, hits = mean(run.wall_s for run in runs), mean(run.metric("test/HR@10") for run in runs)
    targets = point.metric("test/targets")  # older points do not have them
    error = "" if math.isnan(targets) else f" ± {1.645 * math.sqrt(hits * (1 - hits) / targets):.3f}"
    trained = [f"{point.D:,}", f"{point.flops:.2g}", f"{seconds:,.0f}", f"{PROCESS_GIB + step.total / 2**30:.2f}"]
    loss = mean(run.test_loss or math.nan for run in runs)
    return [name, name_of(point.N_body), *trained, f"{hits:.3f}{error}", f"{loss:.3f}"]


def gpu_row(name: str, size: str, example: Point) -> list[str]:
    """A row for a size that was not trained, with the training targets of the example."""
    like = network(example)
    config = TransformerConfig(like.n_items, like.max_len, *find_size(size))
    step = memory.of_step(config, GPU_TARGETS // 8, "bf16-mixed", device="cuda", checkpointing=True)
    flops = example.D * sum(cost.flops_per_interaction(config, (like.max_len + 1) / 2, checkpointing=True))
    computed = [f"{example.D:,}", f"{flops:.2g}", lasting(flops / FLOPS_PER_S), f"{step.total / 2**30:.1f}"]
    return [name, size, *computed, "not known"]


def page() -> str:
    head = ["set", "N_body", "targets", "FLOPs"]
    measured = [[*head, "seconds", "GiB (computed)", "HR@10", "test loss"]]
    computed = [[*head, "time (computed)", "GiB of the GPU (computed)", "HR@10"]]
    for study in STUDIES:
        if not study.points.endswith(".jsonl") or "first" in study.name:
            continue
        sizes = tested(HERE / study.points)
        some = sorted({round(i * (len(sizes) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
        measured += [row(f"[{study.name}]({study.page})", sizes[i]) for i in some]
        if study.name in GPU_SETS:
            computed += [gpu_row(f"[{study.name}]({study.page})", size, sizes[-1][0]) for size in ON_GPU]
    tables = [rows_table(table, text=(0, 1)) for table in (measured, computed)]
    return TEXT.format(*tables)


TEXT = """# What a run costs

For each data set and size, this page gives the time, the memory and the accuracy of a run
([terms](../glossary.md)). For your own data, the option [`--dry_run`](../study-options.md#limits) of a study estimates
the time. `lrec sizes` computes the memory:

```bash
lrec sizes --sizes '[3k, 98k]' --items 12000
```

## On two CPU cores, measured

{}

- **Targets** are the training targets up to the evaluation with the best validation metric. A target counts once for
  each epoch.
- **Seconds** are the wall-clock time from the start to the same evaluation. Other programs often ran on the two cores.
  So compare the times of one data set only roughly. Do not compare the times of different data sets, because their
  histories and steps have different lengths.
- **GiB** is the [computed memory](../sizes.md#what-is-counted) of a training step, plus half a GiB for the process with
  its libraries.
- **[HR@10](../glossary.md#hrk)** is measured on the test targets. The number after ± is half of the 90 % interval over
  targets. Do not compare the HR@10 of two data sets, because their catalogues are different.

## On one H100, computed

The time is the number of FLOPs divided by 40 % of an H100's peak speed (989 TFLOP/s). Small networks reach less than
40 % of this speed. The FLOPs include a [second computation of activations](../sizes.md#what-is-counted)
(checkpointing). The memory is for a step of 8,192 positions in [bf16-mixed](../glossary.md#precision)
(`lrec sizes --device cuda --checkpointing true`). We did not train these sizes, so we do not know their accuracy.

{}

`python benchmarks/costs.py` writes this page from the points in `benchmarks/`.
"""


if __name__ == "__main__":
    write_text(PAGE, page())
