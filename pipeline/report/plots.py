"""The pictures of one stage as PNG files, for the tracker to store with the stage's metrics."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.errors import CheckpointError
from pipeline.report.collect import read_run
from pipeline.report.confusion import draw_confusion
from pipeline.report.curves import draw_panel, panels_of
from pipeline.report.positions import collect_maps, draw_positions
from pipeline.report.precision_recall import draw_precision_recall
from pipeline.report.records import BranchRecord, Run
from pipeline.report.theme import to_png


def save_plots(run_dir: Path, stage_id: str, out_dir: Path) -> list[Path]:
    """Draw the available plots of a stage (`<stage>` or `<stage>/<variant>`): training curves, confusion matrices,
    precision against recall, position similarity.

    Returns the files written into `out_dir`, which is created if missing; empty if the stage has logged nothing yet.

    Raises:
        CheckpointError: `run_dir` is not a run folder, or the run has no such stage.
    """
    run = read_run(run_dir)
    branch = run.by_id.get(stage_id)
    if branch is None:
        known = ", ".join(run.by_id)
        raise CheckpointError(f"{run_dir} has no stage {stage_id!r}; it has {known}")
    out_dir.mkdir(parents=True, exist_ok=True)
    return [to_png(figure, out_dir / f"{name}.png") for name, figure in stage_figures(run, branch).items()]


def stage_figures(run: Run, branch: BranchRecord) -> dict[str, Figure]:
    """Figures of one stage by file name."""
    figures: dict[str, Figure | None] = {}
    if branch.trains:
        figures |= {f"curve-{panel.slug}": draw_panel(panel, [branch]) for panel in panels_of(branch.schema)}
        maps = collect_maps(run, branch)
        lowest = min((float(entry.similarity.min()) for entry in maps), default=0.0)
        figures |= {f"positions-{entry.slug}": draw_positions(entry, lowest) for entry in maps}
    for evaluation in run.evaluations:
        if branch.id in (evaluation.stage, evaluation.model):
            model = evaluation.model.replace("/", "-")
            figures[f"confusion-{model}"] = draw_confusion(evaluation)
            figures[f"precision-recall-{model}"] = draw_precision_recall(evaluation)
    return {name: figure for name, figure in figures.items() if figure is not None}
