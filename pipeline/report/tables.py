"""The text and figures of the page: header, results, surgery, events, environment."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pipeline.config.train_stage import TrainStage
from pipeline.metrics.schema import Measure
from pipeline.models.model_costs import count_parameters
from pipeline.report.files import Row, as_time
from pipeline.report.records import BranchRecord, Evaluation, ProbeRecord, Run
from pipeline.report.text import NOTHING, count_text, duration_text, figure_text, shape_text, size_text, value_text
from pipeline.shards.bad_samples import PROBED, TEST, TRAIN, VAL, summarise

LIBRARIES = ("minivit-pipeline", "torch", "deepspeed", "ray", "mlflow", "webdataset", "timm", "numpy")
MAX_CLASSES = 200  # above this, a table of classes would not help
WORST_FIRST = ("failed", "interrupted", "running")


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table, ready to print."""

    id: str
    state: str
    chosen: bool
    variant: str
    parameters: str
    image_size: str
    patch: str
    measure: str
    start: str
    end: str
    test: str
    wall_time: str
    speed: str


@dataclass(frozen=True)
class ClassTable:
    """An evaluation's figures per class, ready to print."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ProbeTable:
    """A probe's results, ready to print."""

    probe: ProbeRecord
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Event:
    """Something that happened to a stage."""

    time: datetime | None
    stage: str
    kind: str
    message: str


@dataclass(frozen=True)
class SurgeryRow:
    """How surgery changed one tensor."""

    tensor: str
    action: str
    before: str
    after: str
    how: str


@dataclass(frozen=True)
class SurgeryTable:
    """How a branch's model was made from `source`."""

    branch: str
    source: str | None
    summary: str
    rows: list[SurgeryRow]


@dataclass(frozen=True)
class BadSamplesRow:
    """Bad samples in the data of a stage, ready to print. `data` is train, val or an evaluation's data set."""

    stage: str
    data: str
    count: str
    why: str
    manifest: str


def run_state(run: Run) -> str:
    """One word for the whole run; the report stage, which is running at this point, does not count."""
    states = [branch.state for branch in run.branches if branch.config.type != "report"]
    for state in WORST_FIRST:
        if state in states:
            return state
    if all(state == "finished" for state in states):
        return "finished"
    return "unfinished" if "finished" in states else "pending"


def header_facts(run: Run) -> list[tuple[str, str]]:
    """What identifies the run, as label and text."""
    times = [branch.started for branch in run.branches if branch.started]
    seconds = [branch.seconds for branch in run.branches if branch.seconds is not None]
    finished = sum(branch.state == "finished" for branch in run.branches if branch.config.type != "report")
    total = sum(branch.config.type != "report" for branch in run.branches)
    facts = [
        ("Started", f"{min(times):%Y-%m-%d %H:%M}" if times else NOTHING),
        ("Wall time", duration_text(total_seconds(run)) if seconds else NOTHING),
        ("Stages finished", f"{finished} of {total}"),
        ("Seed", str(run.config.seed)),
        ("Config digest", run.digest[:12]),
    ]
    tracked = run.record.get("mlflow_run_id") or run.record.get("run_id")
    return facts + ([("MLflow run", str(tracked)[:12])] if tracked else [])


def total_seconds(run: Run) -> float:
    """Time in which any stage ran; branches that ran in parallel count once."""
    total, counted_to = 0.0, 0.0
    for start, end in sorted(span for branch in run.branches for span in branch.spans):
        total += max(end - max(start, counted_to), 0.0)
        counted_to = max(counted_to, end)
    return total


def result_rows(run: Run) -> list[ResultRow]:
    """One row per training branch."""
    return [result_row(run, branch) for branch in run.trained]


def result_row(run: Run, branch: BranchRecord) -> ResultRow:
    config = branch.config
    assert isinstance(config, TrainStage)
    spec = branch.spec
    measure, val = branch.measure, branch.validated
    speed = branch.series("speed/images_per_s")
    return ResultRow(
        id=branch.id,
        state=branch.state,
        chosen=len(run.fan(branch.stage)) > 1 and run.selected(branch.stage) == [branch],
        variant=branch.variant or NOTHING,
        parameters=count_text(count_parameters(spec)) if spec else NOTHING,
        image_size=size_text(spec.backbone.image_size if spec else config.model.image_size),
        patch=size_text(spec.backbone.patch) if spec else NOTHING,
        measure=measure.words,
        start=value_text(measure, val.at(0)),
        end=value_text(measure, val.last),
        test=value_text(measure, run.tested(branch)),
        wall_time=duration_text(branch.seconds) if branch.seconds is not None else NOTHING,
        speed=f"{np.median(speed.values):,.0f}" if speed else NOTHING,
    )


def measures_with_intervals(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The title and value of each measure, with the selecting one first."""
    row = {**evaluation.measures, "intervals": evaluation.intervals}
    return [(m.title, interval_text(m, row)) for m in evaluation.schema.ranked if m.name in evaluation.measures]


def class_table(evaluation: Evaluation) -> ClassTable | None:
    """All figures per class; None if there are none, or too many classes to read."""
    rows = evaluation.per_class
    if not 0 < len(rows) <= MAX_CLASSES:
        return None
    figures = [column for column in rows[0] if column not in (None, "model", "class")]
    told = [[row.get("class", ""), *(figure_text(row[column]) for column in figures)] for row in rows]
    return ClassTable(["class", *figures], told)


def probe_tables(run: Run) -> list[ProbeTable]:
    """A table for each finished probe stage."""
    return [probe_table(probe) for probe in run.probes]


def probe_table(probe: ProbeRecord) -> ProbeTable:
    """A row per model: its measures with their intervals, then the chosen settings."""
    measures = probe.schema.measures
    settings = list(dict.fromkeys(name for row in probe.models.values() for name in row.get("chosen", {})))
    rows = []
    for name, row in probe.models.items():
        told = [interval_text(measure, row) for measure in measures]
        chosen = [f"{row['chosen'][setting]:,g}" if setting in row["chosen"] else NOTHING for setting in settings]
        rows.append([name, *told, *chosen])
    return ProbeTable(probe, ["model", *(measure.title for measure in measures), *settings], rows)


def interval_text(measure: Measure, row: Row) -> str:
    """81.34 % (80.1 to 82.5) or 0.1352 (0.131 to 0.139); a dash if it was not measured."""
    if measure.name not in row:
        return NOTHING
    text = measure.text(row[measure.name], 2)
    ends = [
        f"{100 * end:.1f}" if measure.share else f"{end:.3g}" for end in row.get("intervals", {}).get(measure.name, ())
    ]
    return f"{text} ({' to '.join(ends)})" if ends else text


def bad_samples_rows(run: Run) -> list[BadSamplesRow]:
    """The bad samples that each stage has found, finished or not. Raises DataError for a damaged manifest."""
    found = []
    for branch in run.branches:
        kinds = {"train": TRAIN, "val": VAL, "knn": PROBED} if branch.trains else {"test": TEST}
        kinds = {"train": TRAIN, "test": PROBED} if branch.config.type == "probe" else kinds
        for data, name in kinds.items():
            told = branch.status.get("result", {}).get("bad_samples", {}).get(data, {})
            bad = summarise(branch.folder / name, int(told.get("samples", 0)))
            if bad.bad:
                count = f"{bad.bad:,} of {bad.samples:,}" if bad.samples else f"{bad.bad:,} so far"
                manifest = Path(name).stem
                shown = branch.config.data_read["data"] if branch.config.type == "evaluate" else data
                found.append(BadSamplesRow(branch.id, shown, count, str(bad), f"stages/{branch.id}/{manifest}.*.jsonl"))
    return found


def all_events(run: Run) -> list[Event]:
    """Events of all stages in chronological order."""
    events = [
        Event(as_time(row.get("time")), branch.id, str(row.get("event", "")), str(row.get("message", "")))
        for branch in run.branches
        for row in branch.events
    ]
    return sorted(events, key=lambda event: event.time.timestamp() if event.time else 0.0)


def environment(run: Run) -> list[tuple[str, str]]:
    """The versions that the run recorded, otherwise those on this machine."""
    recorded = run.record.get("environment")
    if isinstance(recorded, dict) and recorded:
        return [(str(name), str(value)) for name, value in recorded.items()]
    return list(installed_versions().items())


def installed_versions() -> dict[str, str]:
    """Versions on this machine that may affect results; the driver records them with a run."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}"}


def missing(run: Run) -> list[str]:
    """What an unfinished run does not have yet, one sentence each."""
    told = []
    for branch in run.branches:
        kind = branch.config.type
        if kind == "report" or branch.state == "finished":
            continue
        reason = branch.status.get("error") or branch.status.get("message")
        because = f": {str(reason).splitlines()[0]}" if reason else ""
        sentence = {
            "pending": f"{branch.id} has not started",
            "running": f"{branch.id} is still running{progress(branch)}",
            "failed": f"{branch.id} failed{progress(branch)}{because}",
            "interrupted": f"{branch.id} was interrupted{progress(branch)}; the same command resumes it",
        }.get(branch.state, f"{branch.id} is in the state {branch.state}")
        told.append(sentence + ".")
    return told


def progress(branch: BranchRecord) -> str:
    steps = [row["step"] for row in branch.rows if isinstance(row.get("step"), int)]
    return f" at step {max(steps):,}" if steps else ""


def surgery_tables(run: Run) -> list[SurgeryTable]:
    """The surgery report of each branch that starts from another model."""
    return [surgery_table(branch, branch.surgery) for branch in run.trained if branch.surgery]


def surgery_table(branch: BranchRecord, report: Row) -> SurgeryTable:
    """A branch's surgery: every tensor that was not simply copied; the others are only counted."""
    told = [f"{count} {action}" for action, count in report.get("counts", {}).items() if count]
    cosine = report.get("probe", {}).get("feature_cosine")
    if cosine is not None:
        told.append(f"features of a probe batch keep a cosine of {cosine:.4f}")
    rows = [
        SurgeryRow(
            tensor=change["name"],
            action=change["action"],
            before=shape_text(change.get("before")),
            after=shape_text(change.get("after")),
            how=change.get("note", ""),
        )
        for change in report.get("changes", [])
        if change["action"] != "copied" or change.get("note")
    ]
    return SurgeryTable(branch.id, branch.status.get("init_from"), ", ".join(told), rows)
