from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.accuracy import ACCURACY, CLASSIFICATION
from pipeline.report.collect import read_run
from pipeline.report.curves import (
    describe_outcomes,
    describe_panel,
    draw_outcomes,
    draw_panel,
    panels_of,
    restart_steps,
    thin_out,
    validated_measures,
)
from pipeline.report.records import Series

BY_SLUG = {panel.slug: panel for panel in panels_of(CLASSIFICATION)}


@given(st.integers(1, 3000), st.integers(1, 400))
def test_thinning_keeps_the_end_the_bounds_and_at_most_the_limit(points: int, limit: int) -> None:
    series = Series(np.arange(points), np.random.default_rng(points).standard_normal(points))
    thinned = thin_out(series, limit)
    assert len(thinned.steps) == len(thinned.values) == min(points, limit)
    assert thinned.steps[-1] == points - 1
    assert (np.diff(thinned.steps) > 0).all()
    assert series.values.min() <= thinned.values.min() <= thinned.values.max() <= series.values.max()


def test_a_chart_has_each_branch_in_training_and_on_held_out_data(built_run: Path) -> None:
    run = read_run(built_run)
    figure = draw_panel(BY_SLUG["accuracy"], run.fan("pretrain"))
    assert figure is not None
    assert len(figure.axes[0].lines) == 4
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["nano", "micro", "train", "val"]


def test_exactly_the_sizes_that_occur_are_labelled(built_run: Path) -> None:
    run = read_run(built_run)
    figure = draw_panel(BY_SLUG["size"], [run.by_id["finetune-patch2"]])
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["20", "24", "28", "32"]


def test_restarts_are_marked_where_training_went_on(built_run: Path) -> None:
    run = read_run(built_run)
    assert restart_steps(run.by_id["finetune-patch2"]) == [120]
    assert restart_steps(run.by_id["finetune-56"]) == []


def test_nothing_is_drawn_of_what_was_not_logged(unfinished_run: Path) -> None:
    run = read_run(unfinished_run)
    assert draw_panel(BY_SLUG["loss"], [run.by_id["finetune-56"]]) is None


def test_words_say_where_a_curve_starts_and_ends(built_run: Path) -> None:
    run = read_run(built_run)
    told = describe_panel(BY_SLUG["accuracy"], [run.by_id["finetune-56"]])
    assert "finetune-56 val: 0.71 at step 0, 0.857 at step 240" in told


def test_a_bar_for_each_stage_that_was_validated(built_run: Path) -> None:
    run = read_run(built_run)
    assert validated_measures(run) == [ACCURACY]
    figure = draw_outcomes(run, ACCURACY)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["pretrain/nano", "pretrain/micro", "finetune-56", "finetune-patch2"]
    assert "finetune-56 71.0 % to 85.7 %" in describe_outcomes(run, ACCURACY)
