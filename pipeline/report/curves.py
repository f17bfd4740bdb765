"""Training curves: one chart per quantity and stage, with the branches of a fan-out overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from pipeline.metrics.schema import VAL, Measure, Schema
from pipeline.report.records import BranchRecord, Run, Series
from pipeline.report.theme import GRID, INK, MUTED, as_percent, color, step_axis, themed

MAX_POINTS = 400


@dataclass(frozen=True)
class Panel:
    """One chart: the key of a quantity logged in training and, if also measured on held-out data, of that one."""

    slug: str
    title: str
    train: str
    val: str | None = None
    share: bool = False
    stepped: bool = False
    zero_based: bool = False


COURSE = (
    Panel("lr", "Learning rate", "train/lr", zero_based=True),
    Panel("size", "Image size (px)", "train/image_size", stepped=True),
    Panel("speed", "Images per second", "speed/images_per_s", zero_based=True),
    Panel("wait", "Share of time waiting for data", "speed/data_wait_share", share=True, zero_based=True),
)


def panels_of(schema: Schema) -> list[Panel]:
    """The charts of a stage: its task's measures, then the course of training."""
    measures = (Panel(m.name, m.title, f"train/{m.name}", VAL + m.name, share=m.share) for m in schema.measures)
    return [*measures, *COURSE]


def thin_out(series: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` points, each the mean of its neighbours, so that long runs do not bloat the page."""
    if len(series.steps) <= limit:
        return series
    bins = np.array_split(np.arange(len(series.steps)), limit)
    ends = np.array([chunk[-1] for chunk in bins])
    return Series(series.steps[ends], np.array([series.values[chunk].mean() for chunk in bins]))


def draw_panel(panel: Panel, branches: Sequence[BranchRecord]) -> Figure | None:
    """The chart of one quantity; None if no branch has logged it."""
    with themed():
        figure = Figure(figsize=(4.2, 2.6))
        axes = figure.add_axes((0.135, 0.165, 0.85, 0.685))  # the same in all panels, so that they align
        drawn = [plot_branch(axes, panel, branch, color(i)) for i, branch in enumerate(branches)]
        if not any(drawn):
            return None
        axes.set_title(panel.title, x=-0.159)  # the left edge of the figure
        step_axis(axes)
        axes.margins(x=0.02)
        if panel.share:
            as_percent(axes.yaxis)
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if panel.zero_based:
            axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 0.01 if panel.share else 0))
        if panel.stepped:
            label_sizes(axes, [branch.series(panel.train) for branch in branches])
        add_legend(axes, panel, branches)
    return figure


def plot_branch(axes: Axes, panel: Panel, branch: BranchRecord, line: str) -> bool:
    """Draw one branch's lines; False if it logged neither."""
    train = branch.series(panel.train)
    val = branch.series(panel.val) if panel.val else None
    if train:
        if panel.stepped:  # not averaged: a mean of sizes would be a size that never occurred
            axes.plot(train.steps, train.values, ".", ms=3, color=line, alpha=0.7)
            axes.step(train.steps, train.values, where="post", color=line, lw=0.8, alpha=0.45)
        else:
            thinned = thin_out(train)
            axes.plot(thinned.steps, thinned.values, color=line, alpha=0.55 if val else 1.0, lw=1.4)
    if val:
        axes.plot(val.steps, val.values, "o-", color=line, ms=4, lw=1.9)
    for step in restart_steps(branch):
        axes.axvline(step, color=MUTED, ls=":", lw=1)
    return bool(train) or bool(val)


def label_sizes(axes: Axes, drawn: Sequence[Series]) -> None:
    """Label only the sizes that occur."""
    sizes = sorted({float(value) for series in drawn for value in series.values})
    if len(sizes) <= 6:
        axes.set_yticks(sizes, [f"{size:g}" for size in sizes])
    pad = max((sizes[-1] - sizes[0]) * 0.15, sizes[-1] * 0.15)
    axes.set_ylim(sizes[0] - pad, sizes[-1] + pad)


def add_legend(axes: Axes, panel: Panel, branches: Sequence[BranchRecord]) -> None:
    """Add a legend: colours distinguish branches, dots mark held-out data."""
    handles = [Line2D([], [], color=color(i), label=branch.variant or branch.id) for i, branch in enumerate(branches)]
    handles = handles if len(branches) > 1 else []
    if panel.val:
        if any(branch.series(panel.train) for branch in branches):
            handles.append(Line2D([], [], color=MUTED, alpha=0.6, lw=1.4, label="train"))
        handles.append(Line2D([], [], color=MUTED, marker="o", ms=4, label="val"))
    if any(restart_steps(branch) for branch in branches):
        handles.append(Line2D([], [], color=MUTED, ls=":", lw=1, label="restart"))
    if handles:
        axes.legend(
            handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.005), ncols=len(handles), borderpad=0,
            borderaxespad=0.2, columnspacing=0.9, handlelength=1.1, handletextpad=0.4, fontsize=8, labelcolor=MUTED,
        )  # fmt: skip


def restart_steps(branch: BranchRecord) -> list[int]:
    """Steps at which training resumed after a stop."""
    events = (event for event in branch.events if str(event.get("event")) in {"restart", "resume", "resumed"})
    return [int(event["step"]) for event in events if isinstance(event.get("step"), int) and event["step"] > 0]


def describe_panel(panel: Panel, branches: Sequence[BranchRecord]) -> str:
    """The chart in words, for those who cannot see it."""
    parts = []
    for branch in branches:
        for label, key in (("train", panel.train), ("val", panel.val)):
            series = branch.series(key) if key else None
            if series:
                first, last = float(series.values[0]), float(series.values[-1])
                parts.append(
                    f"{branch.id} {label}: {first:.4g} at step {series.steps[0]}, {last:.4g} at step {series.steps[-1]}"
                )
    return f"{panel.title} over steps. " + "; ".join(parts) + "."


def validated_measures(run: Run) -> list[Measure]:
    """The measures by which a run's validated stages are compared."""
    return list(dict.fromkeys(branch.measure for branch in run.trained if branch.validated))


def draw_outcomes(run: Run, measure: Measure) -> Figure:
    """A measure for every validated branch compared by it: at the start (after surgery), the end, and on test data."""
    rows = [branch for branch in run.trained if branch.measure == measure and branch.validated]
    values = [(branch.validated.at(0), branch.validated.last, run.tested(branch)) for branch in rows]
    right = 1.0 if measure.share else 1.05 * max(value for told in values for value in told if value is not None)
    with themed():
        figure = Figure(figsize=(8.4, 0.9 + 0.5 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (start, end, test) in enumerate(values):
            assert end is not None
            bars = [(end, color(0), 0.85), *([] if start is None else [(start, GRID, 1.0)])]
            for length, shade, alpha in sorted(bars, reverse=True):  # the shorter one is on top
                axes.barh(y, length, height=0.56, color=shade, alpha=alpha)
            if start is not None:
                axes.plot([start, start], [y - 0.28, y + 0.28], color=INK, lw=1.6)
            if test is not None:
                axes.plot(test, y, "D", ms=6, color=color(1), mec="none")
            told = " → ".join(measure.text(value) for value in (start, end) if value is not None)
            axes.text(1.02 * right, y, told, va="center", fontsize=9.5, color=INK, fontweight="bold")
        axes.set_yticks(range(len(rows)), [branch.id for branch in rows])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
        axes.set(xlim=(0, right), ylim=(len(rows) - 0.4, -0.6))
        if measure.share:
            as_percent(axes.xaxis)
        axes.grid(axis="x")
        axes.grid(axis="y", visible=False)
        axes.legend(
            handles=[
                Line2D([], [], color=INK, lw=1.6, label="start, after surgery"),
                Line2D([], [], color=color(0), lw=6, label="end (val)"),
                Line2D([], [], color=color(1), marker="D", ls="", ms=6, label="test"),
            ],
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.1, labelcolor=MUTED,
        )  # fmt: skip
    return figure


def describe_outcomes(run: Run, measure: Measure) -> str:
    """The chart in words."""
    told = [
        f"{branch.id} {measure.text(values[0])} to {measure.text(values[-1])}"
        for branch in run.trained
        if branch.measure == measure and len(values := branch.validated.values)
    ]
    return f"Validation {measure.words} of each stage, start to end: {'; '.join(told)}."
