"""Other targets than the next item, and another logQ: what they bring to the test loss and to NDCG@10.

    python benchmarks/targets.py --data FOLDER [--epochs 5] [--seeds 0 1 2] [--runs runs/targets]

The same network (one layer of width 32, histories of 50) is trained with the same seeds, epochs and steps on
MovieLens-1M (a tenth of the users train), on the clicks of Globo (20-core, 8 % of the users) and on Ciao (10-core),
leave-one-out; with sampled losses, also on decks (3 % of them, histories of 100) and on tennis (100-core, 5 % of the
users; the test is each player's first match after a cut in time). Up to 6,040 users are tested, always on their next
item among all items. Feedback needs a log that has it: the ratings of MovieLens-1M and Ciao, and who won in tennis.
Differences are paired over users; their 90 % intervals resample users and seeds together. A negative difference of the
loss and a positive one of NDCG@10 are better. An arm pays on a set if one of the two intervals is on its good side, and
the other is not on its bad side.

The last column is the equivalent size of what is compared with the next item: how many times the parameters in blocks
would lower the test loss as much, by a ladder of networks of widths 8 to 128 (`lrec.laws.equivalents`). It is "more" if
no network of the ladder, and none up to ten times its largest, would; if a smaller network has the lowest loss of the
ladder, size does not pay.

- window: the target is the mean of the next three items (`NextItems`); with falling weights, those after the next have
  0.3.
- multi-token: a matrix for each of the two items after the next. Their losses are added with the weight 0.3.
- sampled: softmax over 256 negatives, drawn by their count, as `SampledSoftmax` corrects it: the target is not sampled.
- target corrected: the logQ of the target is taken off its score too (`target_logq`). corrected: the loss of arXiv
  2507.09331.
- events: the network reads the feedback with the item. feedback: in addition, a second head predicts the feedback to
  the next item, with the weight 0.3.
"""

import argparse
import lzma
import platform
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from small_network import LADDER, Measured, equivalent_size, interval, measured, told
from target_classes import Corrected

import lrec
from lrec.common.files import write_text

HERE = Path(__file__).parent
TESTED = 6040
LEAVE_ONE_OUT = ("MovieLens-1M", "Globo", "Ciao")
WITH_FEEDBACK = ("MovieLens-1M", "Ciao", "tennis")
ALL = (*LEAVE_ONE_OUT, "decks", "tennis")


class Arm(NamedTuple):
    """What is trained: its options, what it is compared with, and on which sets."""

    options: dict[str, object]
    beside: str | None = "next item"
    sets: tuple[str, ...] = LEAVE_ONE_OUT


SAMPLED: dict[str, object] = {"model.loss.negatives": 256, "model.loss.power": 1.0}
ARMS = {
    "next item": Arm({}, None),
    "window": Arm({"model.loss": "NextItems", "model.loss.weights": "[1.0, 1.0, 1.0]"}),
    "window, falling": Arm({"model.loss": "NextItems"}),
    "multi-token": Arm({"model": "target_classes.MultiToken"}),
    "sampled": Arm({"model.loss": "SampledSoftmax"} | SAMPLED, None, ALL),
    "target corrected": Arm(
        {"model.loss": "SampledSoftmax"} | SAMPLED | {"model.loss.target_logq": "true"}, "sampled", ALL
    ),
    "corrected": Arm({"model.loss": "target_classes.Corrected"} | SAMPLED, "sampled", LEAVE_ONE_OUT[:1]),
    "events": Arm({}, None, WITH_FEEDBACK),
    "feedback": Arm({"model": "target_classes.Feedback"}, "events", WITH_FEEDBACK),
    **{f"width {width}": Arm({"model.width": width}) for width in LADDER},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the files of all sets.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/targets"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--sets", nargs="+", default=list(ALL))
    parser.add_argument("--finished", action="store_true", help="Train nothing more: the page of the runs there are.")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sets = logs(options.data, options.runs)

    def run(name: str, arm: str, seed: int) -> Measured | None:
        kept = options.runs / f"{name}-{arm}-{seed}.npz"
        if options.finished and not kept.exists():
            return None
        given = sets[name] | ARMS[arm].options
        given |= feedback(name) if "events" in (arm, ARMS[arm].beside) else {}
        return measured(kept, given, seed, options.epochs, TESTED)

    found = {
        (name, arm, seed): tested
        for seed in options.seeds
        for arm in options.arms
        for name in ARMS[arm].sets
        if name in options.sets
        if (tested := run(name, arm, seed)) is not None
    }
    write_text(HERE / "targets.md", page(found, options))


def logs(data: Path, runs: Path) -> dict[str, dict[str, object]]:
    """The options of each data set."""
    ratings = runs / "ml-1m.csv"
    if not ratings.exists():
        text = lzma.decompress((data / "ml-1m_ratings.dat.xz").read_bytes()).replace(b"::", b",")
        ratings.write_bytes(b"user,item,rating,timestamp\n" + text)
    clicks = {"user": "user_id", "item": "click_article_id", "time": "click_timestamp"}
    return {
        "MovieLens-1M": {"data.path": ratings, "data.time_column": "timestamp", "data.reduction.users": 0.1},
        "Globo": {"data.path": data / "globo_clicks.parquet", "data.k_core": 20, "data.reduction.users": 0.08}
        | {f"data.{kind}_column": column for kind, column in clicks.items()},
        "Ciao": {"data.path": data / "ciao_ratings.csv.gz", "data.time_column": "timestamp", "data.k_core": 10},
        "decks": {"data.path": data / "mtg_decks.parquet", "data.max_len": 100, "data.reduction.users": 0.03},
        "tennis": {"data.path": data / "tennis.parquet", "data.split": "GlobalTemporal", "data.k_core": 100}
        | {"data.reduction.users": 0.05},
    }


def feedback(name: str) -> dict[str, object]:
    """The options by which a network reads the feedback of a set."""
    return {"data.event_column": "event"} if name == "tennis" else {"data.event_features.categories": "[rating]"}


def verdict(loss: tuple[float, float, float], ndcg: tuple[float, float, float]) -> str:
    """Whether an arm pays, by the rule above, or does harm, which is the other way round."""
    better, worse = loss[2] < 0 or ndcg[1] > 0, loss[1] > 0 or ndcg[2] < 0
    return {(True, False): "yes", (False, True): "no: worse", (True, True): "no: both ways"}.get((better, worse), "no")


def gradients_apart() -> float:
    """How far the gradients of `SampledSoftmax` and `Corrected` in hidden states and table are apart, as a share of
    their norm, on random numbers and the same negatives."""
    gradients = []
    for loss in (lrec.SampledSoftmax(256, 1.0), Corrected(256)):
        torch.manual_seed(0)
        hidden_MD, table_VD = (torch.randn(n, 32, requires_grad=True) for n in (512, 3000))
        counts_V, targets_M = torch.arange(1, 3001), torch.randint(3000, (512,))
        loss(hidden_MD, table_VD, targets_M, counts_V).backward()
        found = [each.grad for each in (hidden_MD, table_VD) if each.grad is not None]
        gradients.append(torch.cat(found))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def page(found: dict[tuple[str, str, int], Measured], options: argparse.Namespace) -> str:
    """benchmarks/targets.md."""
    seeds = " ".join(map(str, options.seeds))
    title, _, *about = (__doc__ or "").strip().split("\n\n")
    lines = [
        "# Targets",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core, torch {torch.__version__}.",
        "",
        f"    python benchmarks/targets.py --data FOLDER --epochs {options.epochs} --seeds {seeds}",
        "",
        "\n\n".join([title, *about]),
        "",
        f"{options.epochs} epochs. Times are the processor time of a whole run, with start and validation, per step: "
        "the least of the seeds.",
        "",
        "| arm | data | seeds | test loss | difference | NDCG@10 | difference | pays | ms a step | times the size |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for arm, name in sorted({(arm, name): None for name, arm, _ in found}, key=lambda each: list(ARMS).index(each[0])):
        beside = ARMS[arm].beside
        both = [seed for seed in options.seeds if {(name, arm, seed), (name, beside or arm, seed)} <= found.keys()]
        mine, others = ([found[name, each, seed] for seed in both] for each in (arm, beside or arm))
        if not both:
            continue
        loss_SC, ndcg_SC = of_seeds(mine)
        known_C, differences, worth = ~np.isnan(loss_SC).any(0), ["", "", ""], ""
        if beside is not None:
            other_loss_SC, other_ndcg_SC = of_seeds(others)
            loss, ndcg = interval((loss_SC - other_loss_SC)[:, known_C]), interval(ndcg_SC - other_ndcg_SC)
            differences = [told(loss), told(ndcg), verdict(loss, ndcg)]
            if beside == "next item" and not arm.startswith("width"):
                worth = equivalent_size(loss, found, name, beside, known_C)
        figures = f"{loss_SC[:, known_C].mean():.4f}", differences[0], f"{ndcg_SC.mean():.4f}", *differences[1:]
        cells = arm, name, str(len(both)), *figures, f"{min(run.step_ms for run in mine):.1f}", worth
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", FINDINGS.format(apart=gradients_apart()).strip()]) + "\n"


def of_seeds(runs: list[Measured]) -> tuple[np.ndarray, np.ndarray]:
    """Losses and NDCGs, seeds x targets."""
    return np.stack([run.loss_C for run in runs]), np.stack([run.ndcg_C for run in runs])


FINDINGS = """
## What pays

**With several passes, the window with falling weights pays on MovieLens-1M and Ciao**, so lrec has it: the loss
`NextItems`, whose default weights these are. On Globo, three seeds leave its sign open. But all runs end after five
epochs, which are 640 to 930 steps: lrec warns of fewer than 2,000. [muon.md](muon.md) has the window, and Muon, in runs
whose length validation chooses. On Globo and Ciao, five epochs are too many for the networks of the ladder: a smaller
one is better.

**With one pass, it does not pay.** In the small studies of [exchange.md](exchange.md) (3,072 parameters, one pass,
1,554 to 2,138 steps), `NextItems` raises the test loss: by 0.151 ± 0.112 nats on clicks, 0.009 ± 0.173 on decks, and
0.265 ± 0.387 on tennis (90 % intervals):

    lrec scaling exchange --study STUDY --size 1x16 --steps '{{next items: {{model.loss: NextItems}}}}'

In the recipe `ml-1m-hstu` (all users, 24 epochs), `NextItems` has a validation NDCG@10 of 0.2037 after 22 epochs, where
we stopped it (seed 1). The recipe has 0.2142. So try it where data are few and networks small, and let validation
decide.

- The window costs nothing that we can measure: its targets share the sum over all items. Equal weights are worse: they
  lower NDCG@10 on MovieLens-1M and Globo.
- Multi-token heads pay on all three sets, but a step takes 1.7 to 2.1 times as long. Except on Globo, the window brings
  more. So lrec has no such heads. The class is in `target_classes.py`.
- A logQ of the target pays on Globo and decks, and does no harm on the three other sets. So `SampledSoftmax` has the
  option `target_logq`. It is off by default, because it can do harm: with 1,024 negatives and one pass (three seeds),
  it changes the loss by -0.0071 [-0.0126, -0.0020] on all clicks of Globo, by -0.0048 [-0.0120, +0.0039] on decks
  (NDCG@10 by +0.0013 [+0.0002, +0.0023]), but by +0.0825 [+0.0532, +0.1153] on tokens of Python code (113,575 items).
  More negatives bring more: with 256, the loss of these clicks is 0.3 nats higher.
- The feedback head pays on no set: on MovieLens-1M, Ciao and tennis, all its intervals include 0. So lrec has no such
  head.

## The corrected logQ

`SampledSoftmax` has the corrected logQ already. Its gradient in the scores is the same as in the paper: the target gets
-(1 - P), and the negatives share 1 - P by their corrected scores, where P is the probability of the target among itself
and the negatives. The two differ in how P is estimated: `SampledSoftmax` divides by all negatives that were drawn, the
paper by those that are not the target. With random scores and the same negatives, the gradients differ by {apart:.1e}
of their norm. Runs of MovieLens-1M differ by 0.0001 nats. So there is nothing to add.

## What the classes lack

The other arms are our own classes, named by class path. Two things stood in the way:

- There is no place for a parameter that only training uses, such as a head. The optimizer gets only the parameters of
  the network, and lrec cannot read a checkpoint with others. `WithHead` works around both.
- A batch has the events of the items that are read, but not that of a window's last target. So the feedback head leaves
  this target out, and it can only predict feedback that the network reads.
"""


if __name__ == "__main__":
    main()
