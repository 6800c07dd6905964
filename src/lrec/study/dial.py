"""Plan a study from the hours that it may take: sizes, amount of data, what to tune, and what to hold out.

All runs train on as many targets D as the hours allow: one pass over a share of the users, or several passes over all
users. The largest size has as many parameters as D can train. The two largest sizes are held out; they have 4 and 16
times the parameters of the largest fitted size.
"""

import math
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lrec.common.files import read_json
from lrec.common.hardware import available_gib, free_share
from lrec.common.pages import rendered
from lrec.common.text_tables import lasting, rows_table
from lrec.errors import UserError
from lrec.model.network_sizes import HEAD_WIDTH, find_size, shapes
from lrec.run import dotted
from lrec.study.budget import BESIDE_STEPS, flops_of_target, step_seconds, training_rate
from lrec.study.grid import PlannedRun, epochs_alone, planned_runs
from lrec.study.options import EPOCHS, PLAN, STEP, Study, ladder_n_body
from lrec.study.placement import placement
from lrec.study.tuning import DROPOUTS, HALVED, LEAST_N_BODY, LR, RATED, WALKED, all_walks, shares_of_trials

if TYPE_CHECKING:
    from lrec.data.datamodule import SequenceDataModule

FITTED, PER_DECADE, HELD_OUT = 6, 3, (4, 16)
# The largest held-out size has a parameter for every four targets, because a larger one would lack data rather than
# parameters, but at least LEAST_LARGEST. SMALLEST is the number of parameters of the smallest size.
PER_TARGET, SMALLEST = 0.25, 1000
LEAST_LARGEST = 4 * SMALLEST * HELD_OUT[-1]
LEAST_TARGETS, MOST_PASSES = 1000, 30  # of a run
# The trials of a study with 1.4m targets start with 512 targets in a step; this grows with the root of the targets. The
# planned hours assume that small networks have twice as many, and larger networks fewer (laws/rate_law.py).
FIRST_STEP, STEP_AT, OF_SMALL, FALLS = 512, 1.4e6, 2, -0.2
LONG_STEP = 2**30  # longer than two histories
LEAST_TESTED, MOST_TESTED, OF_TRAINING = 2000, 10_000, 0.1  # users; events of test users for each training target
STEP_S = 0.004  # seconds of a step without its arithmetic
RUN_S = 3.0  # to start and end a run
AT_ONCE = 3  # trials of a walk that can train at the same time: the next ones depend on them
# SampledSoftmax is used if a full pass takes too long and it allows more than twice as many targets. With it, a step
# updates only the rows that it uses if this allows more than twice as many again, as with several 100,000 items.
LOSS, NEGATIVES, MORE_TARGETS, TOUCHED_ROWS = "model.loss", 1024, 2, "model.optimizer.touched_rows"
SAMPLED = {f"{LOSS}.class_path": "lrec.SampledSoftmax", f"{LOSS}.negatives": NEGATIVES, f"{LOSS}.power": 1.0}
BUSY = 0.9  # a smaller share of the cores is said
PLANNED = 0.8  # of the hours; if the trials choose short steps, a study takes longer than planned (benchmarks/hours.md)


class Plan(NamedTuple):
    """The runs of a study for a number of targets, and the hours that they take."""

    targets: int  # D
    epochs: int
    sizes: list[str]
    shares: tuple[float, ...]  # data samples, as shares of the largest
    tune: list[str]
    step: int  # targets in a step of the first trial
    hours: dict[str, float]  # by part, on the clock
    free: float  # share of the cores that other programs leave

    def fits(self, study: Study) -> bool:
        assert study.hours is not None
        return sum(self.hours.values()) <= PLANNED * study.hours


def plan_of(study: Study) -> dict[str, Any]:
    """The plan of a study, from OUT/plan.json if the study has begun. UserError if the hours are too few for any study,
    or if the folder has a plan for other hours or other data."""
    path = study.folder / PLAN
    kept: dict[str, Any] | None = read_json(path)
    if kept is None:
        return _choose(study)
    if kept["hours"] != study.hours:
        raise UserError(f"--hours {study.hours}: {path} is a plan of {kept['hours']:g}: choose another --out")
    store = kept["store"]
    if not study.status:
        with suppress(UserError):  # a finished study does not need the data
            store = _example(study).open_data().store.hash
    if store != kept["store"]:
        raise UserError(f"{path} is a plan for other data: choose another --out, or restore the earlier data")
    return kept


def with_plan(study: Study, plan: dict[str, Any]) -> Study:
    """The study with the plan's values for all options that the user did not give."""
    open_ones = {each.name for each in fields(study) if getattr(study, each.name) == each.default}
    chosen = {name: value for name, value in plan["choices"].items() if name in open_ones}
    given = {name: value for name, value in study.given.items() if value is not None or name not in plan["options"]}
    return replace(study, **chosen, options=plan["options"] | given)


def as_text(plan: dict[str, Any]) -> str:
    """The reasons of the plan's choices, and the time of each part."""
    rows = [["part", "time"], *([part, lasting(3600 * hours)] for part, hours in plan["parts"].items())]
    return f"{' '.join(plan['reasons'])}\n\n{rows_table(rows, text=(0,))}"


def _choose(study: Study) -> dict[str, Any]:
    from lrec.model.losses import FullSoftmax  # imports torch

    example = _example(study)
    data, gpus = example.open_data(), study.placement(example.config).gpus
    if data.n_items < 2:
        raise UserError("--hours: the training part has one item, there is nothing to predict: see --data.item_column")
    jobs = study.jobs or (max(len(study.every_gpu) // gpus, 1) if gpus else study.n_cores)
    plan, options, reason = _longest(study, example, data, jobs), dict[str, Any](), ""
    given = [option for each in (study.given, *study.every_variant.values()) for option in dotted(each)]
    chosen_loss = any(option.startswith(LOSS) for option in given) or example.model.loss != FullSoftmax()
    if plan.targets < data.U and not chosen_loss:
        allowed = f"{plan.targets:,} targets" if plan.fits(study) else "no study"
        sampled = (
            f"Training compares a target with {NEGATIVES:,} items, drawn by popularity (SampledSoftmax); with all "
            f"{data.n_items:,} the hours would allow {allowed}. Evaluation ranks all items."
        )
        faster = [(SAMPLED, sampled)]
        if TOUCHED_ROWS not in given and _allows_touched_rows(example):
            touched = "A step updates only the rows of the item table that it uses (optimizer.touched_rows)."
            faster.append((SAMPLED | {TOUCHED_ROWS: True}, f"{sampled} {touched}"))
        for each in faster:
            drawing = replace(study, options=each[0] | dotted(study.options))
            longer = _longest(drawing, _example(drawing), data, jobs)
            is_worth_it = not plan.fits(study) or longer.targets > MORE_TARGETS * plan.targets
            if longer.fits(study) and is_worth_it:
                plan, (options, reason) = longer, each
    if not plan.fits(study):
        takes = f"the smallest study takes {math.ceil(100 * sum(plan.hours.values()) / PLANNED) / 100:g}"
        raise UserError(f"--hours {study.hours:g}: {takes}{' on a machine this busy' if plan.free < BUSY else ''}")
    chosen = _choices(plan, data, jobs, study)
    chosen["options"] |= options
    chosen["reasons"] += [reason] if reason else []
    return {"hours": study.hours, "store": data.store.hash} | chosen


def _example(study: Study) -> PlannedRun:
    alone: dict[str, Any] = {"sizes": ["3k"], "holdout": 0, "law": None, "horizons": (1.0,)}
    # The plan chooses the step; the configured one may be too short for data.max_len.
    options = study.given | {STEP: study.given.get(STEP) or LONG_STEP, EPOCHS: _passes(study) or MOST_PASSES}
    example = planned_runs(replace(study, fractions=(study.most,), options=options, **alone))[0]
    if epochs_alone(example.config) is None:
        raise UserError(f"--hours: say by --options.{EPOCHS}, and nothing else, how long a run is, or leave it open")
    return example


def _allows_touched_rows(example: PlannedRun) -> bool:
    """Whether the run may update only the touched rows; see `training.touched_rows.check_touched_rows`."""
    value = example.config.value
    return (
        value("trainer.strategy") == "auto"
        and placement(example.config).ranks == 1
        and value(TOUCHED_ROWS) is not None  # lrec's optimizer
        and example.network(1).vector_width is None
        and str(value("trainer.precision")) not in ("16", "16-mixed")
        and value("trainer.gradient_clip_algorithm") != "value"
    )


def _longest(study: Study, example: PlannedRun, data: "SequenceDataModule", jobs: int) -> Plan:
    """The plan with the most targets that the hours allow, or the smallest plan if they allow none."""
    most = (_passes(study) or MOST_PASSES) * data.U
    if most < LEAST_TARGETS:
        raise UserError(f"--hours: {data.U:,} training targets are too few for a study")
    low, high = (_plan(each, study, example, data, jobs) for each in (LEAST_TARGETS, most))
    if high.fits(study):
        return high
    while low.fits(study) and high.targets / low.targets > 1.02:
        plan = _plan(math.isqrt(low.targets * high.targets), study, example, data, jobs)
        low, high = (plan, high) if plan.fits(study) else (low, plan)
    return low


def _plan(targets: int, study: Study, example: PlannedRun, data: "SequenceDataModule", jobs: int) -> Plan:
    """The plan of a study with this many targets in each run and `jobs` runs at the same time."""
    from lrec.training.optim import WSD_FALL

    largest_fitted = max(PER_TARGET * targets, LEAST_LARGEST) / HELD_OUT[-1]
    smallest = max(largest_fitted / 10 ** ((FITTED - 1) / PER_DECADE), SMALLEST)
    ratio = (largest_fitted / smallest) ** (1 / (FITTED - 1))
    fitted = [smallest * ratio**i for i in range(FITTED)]
    sizes = shapes([*fitted, *(times * largest_fitted for times in HELD_OUT)])
    # The most whole passes of which each horizon is a whole number too, or at most one.
    whole = range(max(round(targets / data.U), 1), 1, -1)
    fitting = (n for n in whole if all(n * part <= 1 or round(n * part, 9) % 1 == 0 for part in study.horizons))
    epochs = _passes(study) or next(fitting, 1)
    power_of_two = 2 ** math.floor(math.log2(FIRST_STEP * math.sqrt(targets / STEP_AT)))
    trained = min(targets, epochs * data.U)  # rounded down, the passes have fewer targets than the hours allow
    tune, first = _tuned(study, epochs), study.given.get(STEP) or max(power_of_two, 2 * data.max_len)
    tunes_step = "targets_per_step" in tune

    def seconds(size: str, share: float, step: float, tests: float = 0.0) -> float:
        target_s, step_s = seconds_of(size, example, data)
        return share * trained * ((1 + tests) * target_s + step_s / step) + RUN_S

    shares_of_walks, number = shares_of_trials(trained, first), dict.fromkeys(sizes, RATED)
    number |= {sizes[0]: WALKED, sizes[-2]: HALVED} if tunes_step else {}
    walks = all_walks(sizes[0], sizes[FITTED // 2], sizes[-3], sizes[-2:], shares_of_walks)
    tried = first / 2 if tunes_step else first  # the trials may find that shorter steps, which take longer, are better
    trials = sum(number[size] * seconds(size, share, tried) for size, share in walks)
    trials += WALKED * seconds(sizes[-3], shares_of_walks[0], tried) if "dropout" in tune else 0
    steps = [first * (OF_SMALL * (ladder_n_body(size) / LEAST_N_BODY) ** FALLS if tunes_step else 1) for size in sizes]
    each_s = [seconds(size, 1.0, step, OF_TRAINING) for size, step in zip(sizes, steps, strict=True)]
    ladder_s, held_out_s = each_s[: -len(HELD_OUT)], each_s[-len(HELD_OUT) :]
    *shorter, longest = sorted(study.horizons)
    times, shares = longest + WSD_FALL * sum(shorter), study.samples(epochs)
    samples = sum(share / max(shares) for share in shares)

    def clock(each_s: list[float], seeds: int) -> float:
        return times * max(len(study.every_variant) * seeds * sum(each_s) / jobs, max(each_s))

    clock_s = {
        "trials": trials / min(jobs, AT_ONCE) if tune else 0.0,
        "fitted sizes": samples * clock(ladder_s, len(study.seeds)),
        "held-out sizes": clock(held_out_s, len(study.holdout_seeds)),
    }
    # GPUs and clusters are the study's alone.
    free = 1.0 if study.placement(example.config).gpus or not study.is_here else free_share(jobs)
    hours = {part: value / 3600 / free for part, value in clock_s.items()}
    return Plan(targets, epochs, sizes, shares, tune, first, hours, free)


def _passes(study: Study) -> int | None:
    """The passes that are given, by variants the most of them; None if the plan chooses them."""
    of_all = study.given.get(EPOCHS)
    passes: list[Any] = [dotted(options).get(EPOCHS, of_all) for options in study.every_variant.values()]
    return None if None in passes else max(passes)


def _tuned(study: Study, epochs: int) -> list[str]:
    """What the study tunes: by default what its user has set nowhere, and dropout only for several passes."""
    if study.tune:
        return list(study.tune)
    of_variants = [dotted(options).keys() for options in study.every_variant.values()]
    given = {*study.given, *dotted(study.rules), *set.intersection(*map(set, of_variants))}
    tunable = {"lr": [LR], "targets_per_step": [STEP]} | ({"dropout": DROPOUTS} if epochs > 1 else {})
    return [] if LR in given else [name for name, options in tunable.items() if not given & set(options)]


def seconds_of(size: str, example: PlannedRun, data: "SequenceDataModule") -> tuple[float, float]:
    """Seconds of one core or one GPU to train a size on a target, and seconds of a step beside those of its targets:
    FLOPs, at the measured rate of the powers of two below and above its width."""
    shape, place, network = find_size(size), placement(example.config), example.network(data.n_items)
    positions = max(FIRST_STEP, 2 * data.max_len)

    def log_rate(width: int) -> float:
        near = replace(network, layers=2, width=width, heads=max(width // HEAD_WIDTH, 1))
        return math.log(training_rate(near, example.model.loss, positions, place.precision, place.kind))

    octave = math.log2(shape.width)
    below = math.floor(octave)
    rate = math.exp((below + 1 - octave) * log_rate(2**below) + (octave - below) * log_rate(2 ** (below + 1)))
    own = replace(network, layers=shape.layers, width=shape.width, heads=shape.heads)
    target_s = (1 + BESIDE_STEPS) * flops_of_target(example, own, data) / rate
    return target_s, STEP_S + step_seconds(example, own, positions, place)


def _choices(plan: Plan, data: "SequenceDataModule", jobs: int, study: Study) -> dict[str, Any]:
    """The options of the plan, each with its reason."""
    passes = plan.targets / data.U
    share = min(float(f"{passes / plan.epochs:.2g}"), 1.0)
    if study.fractions is not None and passes < 0.95 * plan.epochs:
        longer = f"runs with --fractions {study.most:g} take longer: name {study.most * share:.2g} or less"
        raise UserError(f"--hours {study.hours:g}: {longer}")
    tested = int(min(max(OF_TRAINING * plan.targets / data.max_len, LEAST_TESTED), MOST_TESTED))
    users = int((data.batch_plan.part.lengths_U > 1).sum())
    few_users = study.reduce == "users" and users**2 < data.U  # samples of them would be a matter of chance, or empty
    reduce = "recent" if few_users else study.reduce
    of_all = {"users": "the users", "interactions": "the interactions", "recent": "each history"}[reduce]
    planned, most = replace(study, sizes=plan.sizes), _passes(study) or MOST_PASSES
    parts = {"fitted": planned.fitted, "held_out": planned.held_out}
    said = plan._asdict() | {part: [f"{ladder_n_body(size):,}" for size in sizes] for part, sizes in parts.items()}
    said |= {"targets": round(plan.epochs * share * data.U), "share": share * study.most, "of_all": of_all}
    said |= {"limited": share < 1 or plan.epochs < most, "per_parameter": 1 / PER_TARGET, "few_users": few_users}
    said |= {"lacks_data": PER_TARGET * plan.targets > LEAST_LARGEST}
    sampled = study.given.get("data.test_users") is None and tested < len(data.cuts.test_users)
    said |= {"tested": sampled and tested, "busy": plan.free < BUSY}
    reasons = rendered("study", "plan.md.j2", said).splitlines()
    options = {EPOCHS: plan.epochs, STEP: plan.step, "data.test_users": tested, "trainer.enable_progress_bar": False}
    fractions = [share * each for each in plan.shares]
    choices = {"sizes": plan.sizes, "fractions": fractions, "reduce": reduce, "tune": plan.tune, "jobs": jobs}
    choices |= {"memory_gib": round(available_gib(), 1)} if study.is_here else {}
    return {"choices": choices, "options": options, "reasons": reasons, "parts": plan.hours}
