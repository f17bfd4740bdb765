"""The pictures of each section of the page, ready to insert, with alt texts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.metrics.pictures import read_pictures
from pipeline.report.attention import Glance, inspect_model
from pipeline.report.confusion import Confusion, describe_confusion, draw_confusion, most_confused
from pipeline.report.curves import (
    describe_outcomes,
    describe_panel,
    draw_outcomes,
    draw_panel,
    panels_of,
    validated_measures,
)
from pipeline.report.distances import describe_distances, draw_distances
from pipeline.report.filters import describe_filters, draw_filters
from pipeline.report.graph import draw_graph
from pipeline.report.positions import PositionMaps, collect_maps, describe_positions, draw_positions
from pipeline.report.precision_recall import describe_precision_recall, draw_precision_recall
from pipeline.report.records import BranchRecord, Evaluation, Run
from pipeline.report.tables import ClassTable, class_table, measures_with_intervals
from pipeline.report.theme import to_svg

SMALL = 168  # px; pictures whose shorter side is below this are enlarged pixel by pixel


@dataclass(frozen=True)
class Picture:
    """An inline SVG and its alt text."""

    svg: Markup
    alt: str


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Photo:
    """A picture saved by a stage, as a `data:` URL; `small` means that its individual pixels should be visible."""

    image: str
    small: bool
    caption: str


@dataclass(frozen=True)
class Album:
    """A stage's pictures with the same title."""

    branch: BranchRecord
    title: str
    photos: list[Photo]


@dataclass(frozen=True)
class JudgedModel:
    """An evaluation's results for one model."""

    evaluation: Evaluation
    measures: list[tuple[str, str]]  # title and value
    picture: Picture | None
    confused: list[Confusion]
    classes: ClassTable | None


@dataclass(frozen=True)
class Gallery:
    """The inside of one model: charts, and its attention and tokens on a few test images."""

    branch: BranchRecord
    dataset: str
    charts: list[Picture]
    glances: list[Glance]


@dataclass
class MissingPictures:
    """Why pictures are missing: one sentence each."""

    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """Skip a picture whose files are missing or damaged, and say so on the page."""
        try:
            yield
        except (PipelineError, OSError) as error:
            self.sentences.append(f"{what} could not be drawn: {error}")


def slug(text: str) -> str:
    """A branch's id as part of an HTML id."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def picture(figure: Figure, name: str, alt: str) -> Picture:
    return Picture(Markup(to_svg(figure, slug(name))), alt)


def graphs(run: Run) -> tuple[Markup, Markup]:
    """The graph of stages for wide and for narrow screens."""
    return Markup(draw_graph(run)), Markup(draw_graph(run, vertical=True))


def outcomes(run: Run) -> list[Group]:
    """A chart for each measure by which stages of the run are compared."""
    groups = []
    for measure in validated_measures(run):
        drawn = picture(draw_outcomes(run, measure), f"outcome-{measure.name}", describe_outcomes(run, measure))
        groups.append(Group(f"{measure.title} per stage", [drawn]))
    return groups


def curve_groups(run: Run) -> list[Group]:
    """The training curves of each stage; branches of a fan-out share the charts."""
    groups = []
    for stage, group in groupby(run.trained, key=lambda branch: branch.stage):
        members = list(group)
        branches = [branch for branch in members if branch.rows]
        drawn = [
            picture(figure, f"curve-{stage}-{panel.slug}", describe_panel(panel, branches))
            for panel in panels_of(members[0].schema)
            if (figure := draw_panel(panel, branches)) is not None
        ]
        if drawn:
            groups.append(Group(stage, drawn))
    return groups


def judged_models(run: Run) -> list[JudgedModel]:
    """A confusion matrix for each evaluated classifier, precision and recall for each detector."""
    judged = []
    for i, evaluation in enumerate(run.evaluations):
        drawn = None
        if figure := draw_confusion(evaluation):
            drawn = picture(figure, f"confusion-{i}", describe_confusion(evaluation))
        elif figure := draw_precision_recall(evaluation):
            drawn = picture(figure, f"precision-recall-{i}", describe_precision_recall(evaluation))
        measures, classes = measures_with_intervals(evaluation), class_table(evaluation)
        judged.append(JudgedModel(evaluation, measures, drawn, most_confused(evaluation), classes))
    return judged


def albums(run: Run, gaps: MissingPictures) -> list[Album]:
    """The tasks' pictures, by stage and title."""
    found = []
    for branch in run.branches:
        with gaps.noted(f"The pictures of {branch.id}"):
            for title, group in groupby(read_pictures(branch.folder), key=lambda entry: entry[1].title):
                photos = [photo(file, entry.caption) for file, entry in group]
                found.append(Album(branch, title, photos))
    return found


def photo(file: Path, caption: str) -> Photo:
    with Image.open(file) as image:
        small = min(image.size) < SMALL
    encoded = base64.b64encode(file.read_bytes()).decode("ascii")
    return Photo(f"data:image/png;base64,{encoded}", small, caption)


def position_groups(run: Run, gaps: MissingPictures) -> list[Group]:
    """Position similarity of each branch that has a model, before and after surgery and training."""
    groups = []
    for stage, members in groupby(run.trained, key=lambda branch: branch.stage):
        found: list[tuple[BranchRecord, PositionMaps]] = []
        for branch in members:
            with gaps.noted(f"Position similarity of {branch.id}"):
                found += [(branch, maps) for maps in collect_maps(run, branch)]
        if found:
            groups.append(Group(stage, position_pictures(found)))
    return groups


def position_pictures(found: list[tuple[BranchRecord, PositionMaps]]) -> list[Picture]:
    """Pictures of one stage, on a common scale."""
    lowest = min(float(maps.similarity.min()) for _, maps in found)
    return [
        picture(draw_positions(maps, lowest), f"positions-{branch.id}-{maps.slug}", describe_positions(branch, maps))
        for branch, maps in found
    ]


def galleries(run: Run, gaps: MissingPictures) -> list[Gallery]:
    """A gallery of each evaluated model, latest first, on the first images of its evaluation data."""
    found: list[Gallery] = []
    for evaluation in reversed(run.evaluations):
        branch = run.by_id.get(evaluation.model)
        if branch is None or not (branch.folder / "model" / "model.json").is_file():
            continue
        with gaps.noted(f"Attention of {branch.id}"):
            dataset = run.config.datasets.get(evaluation.dataset)
            if dataset is not None:
                glances, distances, filters = inspect_model(branch.folder / "model", dataset)
                name = f"{branch.id}-{len(found)}"
                charts = [
                    picture(draw_distances(distances), f"distances-{name}", describe_distances(branch.id, distances)),
                    picture(draw_filters(filters), f"filters-{name}", describe_filters(branch.id, filters)),
                ]
                found.append(Gallery(branch, evaluation.dataset, charts, glances))
    return found
