"""The answer of a study, for the person who decides: what larger networks bring, what they cost, how sure that is, and
what else could help. report.html and report.md begin with it. Their templates are in this folder."""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import mean

import polars as pl

from lrec.common.files import sibling
from lrec.common.pages import rendered
from lrec.common.text_tables import amount, counted
from lrec.laws.analysis import FAILS, Analysis
from lrec.laws.intervals import Judged
from lrec.laws.metric_forecasts import best_measured, outlook_metrics
from lrec.laws.predict import outlook, turns
from lrec.laws.table import points_of_most_data
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import find_size
from lrec.run import Point, dotted, run_of_study
from lrec.study.budget import gib_of, hours_by_run
from lrec.study.grid import PlannedRun, of_all_data, ruled_options
from lrec.study.options import Study, ladder_n_body

# For each metric that an answer may have (see `metric_of`), the metrics beside it.
BESIDE = {"HR@10": ("HR@10_unseen", "NDCG@10"), "HR@10_unseen": ("HR@10", "NDCG@10_unseen")}
TIMES = (10, 30)
PAYS = 0.01  # a smaller gain, as a share of today's metric, does not justify a network of ten times the price
NEARLY = 0.99  # a baseline or smaller network with this share of the best measured metric may be the better choice
MOST_RISKS = 3
WIDTHS = 8  # the width of a network that is not trained yet is a multiple of this
BASELINES = {
    "popularity": "showing the most popular items",
    "recent-popularity": "showing what was popular recently",
    "repeat-last": "showing a user's last items again",
    "markov": "counting which item follows which",
    "item-graph": "counting which items go together",
}


@dataclass(frozen=True)
class Column:
    """A column of the table: a measured size, or a forecast size with the ends of its interval."""

    title: str
    size: float
    value: float
    low: float | None
    high: float | None
    beside: dict[str, float]  # other metrics
    gain: float  # compared with the best trained size, as a share of that size's value
    network: str  # its blocks and width; "" if it is not known
    prices: dict[str, str]  # cells by title: see `priced`


@dataclass(frozen=True)
class Answer:
    """The first screen of a report: sentences, the columns of its table, and a command."""

    metric: str
    verdict: str
    finding: str
    columns: tuple[Column, ...]
    sure: tuple[str, ...]
    baselines: str
    risks: tuple[str, ...]
    instead: tuple[str, ...]
    next_step: str
    command: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table: titles, then a row for each figure, with its name first."""
        cells = {"": [c.title for c in self.columns], "parameters": [amount(c.size) for c in self.columns]}
        cells[self.metric] = [f"{c.value:.3f}" for c in self.columns]
        ahead = self.columns[1:]
        cells["90 % interval"] = ["measured", *(f"{c.low:.3f} to {c.high:.3f}" for c in ahead)]
        cells["gain"] = ["", *(f"{100 * c.gain:+.1f} %" for c in ahead)]
        cells |= {name: [f"{c.beside[name]:.3f}" for c in self.columns] for name in BESIDE[self.metric]}
        cells |= {title: [c.prices[title] for c in self.columns] for title in self.columns[0].prices}
        return [[name, *row] for name, row in cells.items()]


def metric_of(points: Iterable[Point]) -> str:
    """HR@10 of the lists that serve users better, by the validation of the best network: lists of all items, or lists
    without the items that the user had before."""
    known = [point for point in points if not point.diverged and point.val_loss is not None]
    best = min(known, key=attrgetter("val_loss"), default=Point())
    return max(BESIDE, key=lambda metric: best.metrics.get(f"val/{metric}") or 0.0)


def answer_of(
    study: Study, analysis: Analysis, runs: list[PlannedRun], points: Mapping[str, Point], warned: Sequence[str]
) -> Answer | None:
    """The answer from all points of a ladder, also the held-out ones; None if too few sizes have the metric. `runs` are
    those of the ladder, and those of its variant with less data; if they have no options, there are no prices and no
    exact command. `warned` has the warnings of the report."""
    metric, ahead = metric_of(points.values()), [outlook(analysis.of_all, times=times) for times in TIMES]
    over_fits = turns(analysis.of_all, ahead[0])
    expected = outlook_metrics(analysis.points, ahead, over_fits, (metric, *BESIDE[metric]))
    if metric not in expected:
        return None
    finished = [run for run in runs if not points[run.name].diverged]
    runs = of_all_data(finished)
    run = max(runs, key=lambda r: points[r.name].N_body)
    point = points[run.name]
    means = points_of_most_data(analysis.points).group_by("x").agg(pl.col(metric).mean())
    sizes = means.fill_null(0.0).sort("x").rows()  # a size may lack the metric
    size, today = sizes[-1]
    if not today:  # no hit: nothing has a gain over it
        return None
    seeds = [points[r.name] for r in runs if points[r.name].N_body == point.N_body]
    measured = {name: mean(each.metric(f"test/{name}") for each in seeds) for name in BESIDE[metric]}
    best = best_measured(analysis.points, metric)
    columns = [Column("largest trained", size, today, None, None, measured, 0.0, *priced(study, run))]
    for index, (times, at) in enumerate(zip(TIMES, expected[metric], strict=True)):
        beside = {name: expected[name][index].predicted if name in expected else math.nan for name in BESIDE[metric]}
        forecast = at.x, at.predicted, at.low, at.high, beside, at.predicted / best - 1
        columns.append(Column(f"{times} times", *forecast, *priced(study, run, times)))
    shares = {name: point.metric(f"test/{name}/{metric}") for name in BASELINES}
    baselines = sorted(((share, name) for name, share in shares.items() if math.isfinite(share)), reverse=True)
    judged = analysis.tested(metric)
    within = sum(each.inside for each in judged)
    fails = 2 * within < len(judged) if judged else any(FAILS in said for said in analysis.verdict)
    share, name = baselines[0] if baselines else (0.0, "")
    beaten = baselines[0] if name and share >= best else None
    risks = []
    if name and share >= NEARLY * best:
        good = "as good as any network here" if beaten else "nearly as good as the best network"
        risks.append(f"{BASELINES[name].capitalize()} is {good} ({share:.3f} and {best:.3f}).")
    risks += warned
    if over_fits:
        risks.append("The loss stopped falling: larger networks may only memorise the training data.")
    risks.append(f"No network of more than {amount(size)} parameters was tested.")
    near = min(x for x, value in sizes if value >= NEARLY * best)
    smallest = min((r for r in runs if getattr(points[r.name], study.x) >= near), key=lambda r: points[r.name].N_body)
    nearly = f"already has {100 * NEARLY:.0f} % of the best {metric}, {best:.3f}."
    smaller = [f"A network of {amount(near)} parameters {nearly}"] if near < size else []
    gains = " and ".join(f"{100 * c.gain:+.1f} % at {c.title}" for c in columns[1:])
    shown = {"metric": metric, "pays": PAYS, "baselines": BASELINES}
    shown |= {"columns": columns, "best": best, "fails": fails, "beaten": beaten}
    return Answer(
        metric,
        rendered("study", "verdict.md.j2", shown),
        f"{metric} by size: the forecast failed its test" if fails else f"{metric}: {gains} the size",
        tuple(columns),
        tuple(_sure(metric, judged, point)),
        ", ".join(f"{name} {value:.3f}" for value, name in baselines) or "none was measured",
        tuple(risks[:MOST_RISKS]),
        (*smaller, *_more_data(metric, study.x, [(run, points[run.name]) for run in finished])),
        *_next(study, run, smallest, columns[1], fails, beaten is not None),
    )


def _sure(metric: str, judged: Sequence[Judged], point: Point) -> list[str]:
    """How the forecast did on the held-out sizes, and how exact the test is."""
    said, users = ["No network was held out to check the forecast."], point.metric("test/targets")
    if judged:
        inside = sum(each.inside for each in judged)
        error, naive = mean(abs(j.error_pct) for j in judged), mean(abs(j.naive_error_pct) for j in judged)
        lie = "network lies within its forecast 90 % interval"
        lie = lie if len(judged) == 1 else "networks lie within their forecast 90 % intervals"
        said = [
            f"{inside} of {len(judged)} large {lie}.",
            f"The forecast is off by {error:.1f} % on average, the no-gain baseline by {naive:.1f} %.",
        ]
    if math.isfinite(users):
        share = point.metric(f"test/{metric}")
        error = 1.645 * math.sqrt(share * (1 - share) / users)
        said.append(f"On {counted(int(users), 'target')}, {metric} is exact to ± {error:.3f}.")
    return said


def _more_data(metric: str, x: str, finished: Sequence[tuple[PlannedRun, Point]]) -> list[str]:
    """More data as an alternative to a larger network: what the two longest horizons, or else the two largest data
    samples, show at the largest size that has both."""
    of_amount: dict[tuple[float, float], list[tuple[PlannedRun, Point]]] = defaultdict(list)
    for run, point in finished:
        if point.metric(f"test/{metric}") > 0:
            of_amount[run.fraction, run.horizon].append((run, point))
    if len(of_amount) < 2:
        how = "horizons (--horizons '[0.5, 1]') or samples of the users (--fractions '[0.5, 1]')"
        return [f"More data: this study did not measure it. To measure it, add {how}."]
    few, many = (of_amount[each] for each in sorted(of_amount)[-2:])
    both = {run.size for run, _ in few} & {run.size for run, _ in many}
    if not both:
        return []
    size = max(both, key=ladder_n_body)
    less, more = (mean(run.horizon * point.U for run, point in each) for each in (few, many))
    before, after = (mean(p.metric(f"test/{metric}") for run, p in each if run.size == size) for each in (few, many))
    at = next(getattr(point, x) for run, point in many if run.size == size)
    repeats = few[0][0].fraction == many[0][0].fraction and any(point.epochs > 1 for _, point in many)
    what = "passes" if repeats else "data"
    changed = f"{metric} changed by {100 * (after / before - 1):+.1f} % at {amount(at)} parameters"
    return [f"More {what}: with {more / less:.1f} times the {what}, {changed}."]


def _next(
    study: Study, largest: PlannedRun, smallest: PlannedRun, ten: Column, fails: bool, beaten: bool
) -> tuple[str, str]:
    """The next step: a sentence, and the command for it. `smallest` is the smallest run that is as good."""
    if not ten.network:
        return "Train the size that you want.", "lrec fit --help"
    needed, name = run_of_study(study.folder, largest.name).config_file, "fit"
    options: dict[str, object] = {}
    if fails:
        why = "Repeat the largest network with another seed, to see whether its result was luck."
        options |= dict.fromkeys(("seed_everything", "data.seed"), largest.seed + 100)
    elif beaten:
        why = "Compare what else could help: more passes, longer histories, times, or another loss."
        name, options = "scaling exchange", {"study": study.folder}
    elif ten.gain < PAYS:
        why, needed = "Use the smallest network that is as good.", run_of_study(study.folder, smallest.name).best
        name, options = "export", {"ckpt_path": needed, "out": sibling(study.folder, "model")}
    else:
        why, options["model.size"] = "Train ten times the size.", ten.network
        ruled, own = ruled_options(study, ten.network, largest.fraction), dotted(study.every_variant[largest.variant])
        options |= {option: value for option, value in ruled.items() if option not in own}
        options |= {"model.warm_start": "null"} if largest.starts_from else {}  # its source has another size
    if name == "fit":
        options = {"config": needed, **options, "trainer.default_root_dir": sibling(study.folder, "next")}
    if not needed.exists():  # only the points of the study were kept
        return f"{why} This needs {needed}, which is not on this machine.", f"lrec {name} --help"
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return why, shlex.join(["lrec", *name.split(), *words])


def priced(study: Study, run: PlannedRun, times: float = 1.0) -> tuple[str, dict[str, str]]:
    """The size of a network with `times` the parameters of that of a finished run, counted by the study's x, and its
    price if it is trained in the same way, as cells by title: hours of a core or a GPU, and money if an hour has a
    price; GiB of memory (of each GPU, if it trains on GPUs) and of disk; milliseconds that one core or GPU needs for a
    request. Nothing if the run's options are not known.

    The estimate uses the FLOPs per second of this run, from the first step to the last evaluation. A request encodes a
    whole history and scores the catalogue once; nothing is cached between requests. What any request takes, however
    small the network, is not included: about a millisecond, which is most of the time of a small network.
    """
    if not run.options:
        return "", {}
    last = run_of_study(study.folder, run.name).points[-1]
    trained, beside = run.network(last.N_head // last.d_model), last.N_total - last.N_body
    network = wider(trained, times, beside if study.x == "N_total" else 0)
    place, hours = study.placement(run.config), hours_by_run(study, [run])[run.name] / run.own
    forward, head = cost.flops_per_interaction(network).forward, 2 * cost.n_head(network)
    train_hours = hours * forward / cost.flops_per_interaction(trained).forward
    memory_gib, gpu_gib, disk_gib = gib_of(network, run.config, place)
    request_ms = 1000 * (network.max_len * (forward - head) + head) / (last.flops / (3600 * hours))
    unit, of_gpu = ("GPU", "GPU ") if place.gpus else ("core", "")
    cells = {f"training, {unit}-hours": two_digits(train_hours)}
    if study.price_per_hour is not None:
        cells["training, price"] = two_digits(train_hours * study.price_per_hour)
    cells |= {f"{of_gpu}memory to train, GiB": f"{gpu_gib or memory_gib:.1f}", "disk, GiB": two_digits(disk_gib)}
    cells |= {f"computing one request, ms on a {unit}": two_digits(request_ms)}
    return f"{network.layers}x{network.width}", cells


def two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,g}"


def wider(network: TransformerConfig, times: float, beside: int = 0) -> TransformerConfig:
    """A network with the same number of blocks, and about `times` the parameters: in the blocks, and in `beside` others
    that grow with the width, as the item table does."""
    if times == 1:
        return network
    of_blocks, of_others = cost.n_body(network) / network.width**2, beside / network.width
    wanted = times * (cost.n_body(network) + beside)
    width = (math.sqrt(of_others**2 + 4 * of_blocks * wanted) - of_others) / (2 * of_blocks)
    shape = find_size(f"{network.layers}x{WIDTHS * max(round(width / WIDTHS), 1)}")
    return replace(network, width=shape.width, heads=shape.heads)
