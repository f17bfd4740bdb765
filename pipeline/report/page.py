"""The page of a run: one self-contained HTML file that makes no network requests."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import pictures, tables
from pipeline.report.collect import read_run
from pipeline.report.records import Run

SECTIONS = {
    "stages": "Stages",
    "results": "Results",
    "left-out": "Bad samples",
    "curves": "Curves",
    "evaluation": "Evaluation",
    "features": "Frozen features",
    "pictures": "Pictures",
    "positions": "Positions",
    "attention": "Attention",
    "surgery": "Surgery",
    "events": "Events",
    "environment": "Environment",
}


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html` from whatever the run has produced so far, and return its path.

    Raises:
        CheckpointError: `run_dir` is not a run folder.
    """
    run = read_run(run_dir)
    target = run_dir / "report.html"
    scratch = run_dir / f".report-{os.getpid()}.html"
    scratch.write_text(render(run), encoding="utf-8")
    os.replace(scratch, target)  # a reader, or a reloading browser, never sees a partial page
    return target


def render(run: Run) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gaps = pictures.MissingPictures()
    left_out: list[tables.BadSamplesRow] = []
    with gaps.noted("The table of bad samples"):
        left_out = tables.bad_samples_rows(run)
    wide, tall = pictures.graphs(run)
    context = {
        "run": run,
        "sections": SECTIONS.items(),
        "state": tables.run_state(run),
        "written": datetime.now().astimezone(),
        "facts": tables.header_facts(run),
        "missing": tables.missing(run),
        "graph_wide": wide,
        "graph_tall": tall,
        "results": tables.result_rows(run),
        "left_out": left_out,
        "outcomes": pictures.outcomes(run),
        "curves": pictures.curve_groups(run),
        "judged": pictures.judged_models(run),
        "probes": tables.probe_tables(run),
        "albums": pictures.albums(run, gaps),
        "positions": pictures.position_groups(run, gaps),
        "surgeries": tables.surgery_tables(run),
        "galleries": pictures.galleries(run, gaps),
        "events": tables.all_events(run),
        "environment": tables.environment(run),
        "gaps": gaps.sentences,
    }
    return environment.get_template("template.html.j2").render(context)
