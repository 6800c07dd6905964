"""What a backtest writes: report.md, report.html, backtest.json, a picture, and points by age for fitting laws."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from lrec.backtest.findings import CONFIDENCE, METRIC, Findings, Gain, Z, mean_of, summary_of
from lrec.backtest.options import Backtest, Windows, network_of
from lrec.common.files import write_json, write_text
from lrec.common.pages import as_html, rendered, within_a_page
from lrec.common.pictures import BLUE, GREY, alt_text, draw_frame, new_figure, remove_figure, save_figure
from lrec.common.text_tables import lasting, rows_table
from lrec.data.store.store import Store, time_text
from lrec.evaluation.standard_errors import standard_error
from lrec.run import Point, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(store: Store, windows: Windows, found: Findings, beside: Mapping[int, pl.DataFrame]) -> str:
    """Write all findings, with the baselines' targets in the window of each origin (`beside`), and return the text of
    report.md."""
    backtest, out, gains, updates = found.backtest, found.backtest.folder, found.of_size, found.updates
    verdict = f"{verdict_of(backtest, gains)} {_best_baseline(found, beside)}"
    by_age = {age: {name: summary_of(mine) for name, mine in of.items()} for age, of in found.by_age.items()}
    given: dict[str, Any] = {"backtest": backtest, "confidence": CONFIDENCE, "z": Z, "metric": METRIC}
    given |= {"by_age": by_age, "gains": gains, "updates": updates}
    given["diverged"] = [point.run for point, _ in found.served.values() if point.diverged]
    given["n_windows"] = {k: of[backtest.sizes[0]][0]["window"].n_unique() for k, of in found.by_age.items()}
    given["windows"] = _windows_table(store, windows, found, beside)
    method, details = (rendered("backtest", f"{part}.md.j2", given, lasting=lasting) for part in ("method", "details"))
    report = f"# Backtest {backtest.name}\n\n**{verdict}**\n\n{method}\n\n{details}"
    shown: dict[str, Any] = {"name": backtest.name, "verdict": verdict, "method": method, "details": as_html(details)}
    if gains:
        figure = _age_figure(backtest, gains)
        save_figure(out / "by_age.png", figure)
        shown |= {"picture": within_a_page(figure), "alt": alt_text(figure)}
    else:  # there may be one of sizes that the backtest no longer has
        remove_figure(out / "by_age.png")
    shutil.rmtree(out / "ages", ignore_errors=True)  # some may be of ages that the backtest no longer has
    for age, points in _points_by_age(found).items():
        Run(out / "ages" / str(age)).write_points(points)
    content = {
        "name": backtest.name,
        "verdict": verdict,
        "windows": {k: [time_text(time, store.time_unit) for time in window] for k, window in windows.items()},
        "by_age": by_age,
        "gain_of_size": {age: asdict(gain) for age, gain in gains.items()},
        "updates": updates,
    }
    write_json(out / "backtest.json", content)
    write_text(out / "report.md", report)
    write_text(out / "report.html", rendered("backtest", "report.html.j2", shown))
    return report


def verdict_of(backtest: Backtest, gains: Mapping[int, Gain]) -> str:
    """One sentence: is the larger network ahead, and does it stay so?"""
    measured = [age for age, gain in gains.items() if not math.isnan(gain.value)]
    age = max((age for age in measured if age <= backtest.folds // 2), default=0)
    given = {"backtest": backtest, "gains": gains, "age": age, "metric": METRIC, "confidence": CONFIDENCE}
    return rendered("backtest", "verdict.md.j2", given)


def _best_baseline(found: Findings, beside: Mapping[int, pl.DataFrame]) -> str:
    """The best baseline on the targets of the networks' first windows."""
    targets = pl.concat([beside[k] for k in found.origins])
    means = {name: mean_of([mine], METRIC) for (name,), mine in targets.group_by("scorer", maintain_order=True)}
    if not means:
        return "In the window after training, no target has a known item before it."
    best = max(means, key=means.__getitem__)
    return f"In the window after training, the best baseline is {best}: {means[best]:.4f}."


def _windows_table(store: Store, windows: Windows, found: Findings, beside: Mapping[int, pl.DataFrame]) -> str:
    """For each window: the newest networks trained before it, and the baselines of its origin."""
    backtest = found.backtest
    newest = max(backtest.update, key=["none", "warm", "full"].index)
    names = dict.fromkeys(name for table in beside.values() for name in table["scorer"])
    rows = [["window", "begins", "targets", "cold", *(f"{METRIC} {name}" for name in (*backtest.sizes, *names))]]
    for number, (at, _) in windows.items():
        begins = time_text(at, store.time_unit)
        tables = [found.tables(size, [(network_of(newest, number), number)]) for size in backtest.sizes]
        losses, own = tables[0][0]["loss"].to_numpy(), beside.get(number)
        cold = f"{100 * np.isnan(losses).mean():.1f} %" if len(losses) else ""
        tables += [[] if own is None else [own.filter(scorer=name)] for name in names]
        figures = [f"{mean_of(each, METRIC):.4f}" if any(map(len, each)) else "" for each in tables]
        rows.append([str(number), begins, f"{len(losses):,}", cold, *figures])
    return rows_table(rows, text=(1,))


def _age_figure(backtest: Backtest, gains: Mapping[int, Gain]) -> "Figure":
    """The gain of the larger network at each age with its interval, and a line for no gain."""
    small, large, ages = backtest.sizes[0], backtest.sizes[-1], [backtest.lasting(age) for age in gains]
    most = max(gains.values(), key=lambda gain: (gain.sign, gain.value))  # the sign puts nan behind what is certain
    finding = f"{large} is not certainly better than {small} at any age"
    if most.sign > 0:
        finding = f"{large} is up to {most.value:.4f} better than {small} in {METRIC}"
    figure = new_figure(4.4, 3.2, f"{finding}. Gain in {METRIC} against the age of the networks, with {CONFIDENCE}")
    axes = figure.add_subplot()
    value_A, half_A = np.array([(gain.value, Z * gain.error) for gain in gains.values()]).T
    axes.errorbar(range(len(ages)), value_A, half_A, fmt="o-", color=BLUE, lw=2, elinewidth=1, capsize=3)
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.annotate("no gain", (len(ages) - 1, 0), (0, -3), textcoords="offset points", color=GREY, ha="right", va="top")
    axes.set_xticks(range(len(ages)), ages)
    axes.set(xlabel="age of the networks", ylabel=f"gain in {METRIC}")
    axes.margins(y=0.12)  # room for the words below the line
    axes.set_title(finding, fontsize=9)
    draw_frame(axes)
    return figure


def _points_by_age(found: Findings) -> dict[int, list[Point]]:
    """A point for each age, size and seed, with the test loss of the windows at this age, if there is one; for laws of
    size."""
    points, newest = dict[int, list[Point]](), network_of("full", found.origins[-1])
    for age, by_size in found.by_age.items():
        for size, tables in by_size.items():
            for seed, table in zip(found.backtest.seeds, tables, strict=True):
                figures = summary_of([table])
                if math.isnan(figures["loss"]):
                    continue
                changes: dict[str, Any] = {"run": f"{size}-age-{age}-seed{seed}", "test_loss": figures["loss"]}
                changes["test_loss_se"] = standard_error(table.filter(pl.col("loss").is_not_nan()))
                changes["metrics"] = {f"test/{name}": value for name, value in figures.items()}
                points.setdefault(age, []).append(replace(found.served[newest, size, seed][0], **changes))
    return points
