"""The graph of stages as SVG: a box for each branch, arrows along `init_from`, `teacher`, `models` and `model`."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from pipeline.config.train_stage import TrainStage
from pipeline.report.records import BranchRecord, Run
from pipeline.report.text import size_text

BOX_WIDTH, BOX_HEIGHT = 196, 112
GAP_ALONG, GAP_ACROSS = 52, 22
ARROW = 9


@dataclass(frozen=True)
class PlacedBranch:
    """A branch and the corner of its box, in px."""

    branch: BranchRecord
    x: float
    y: float


def layers(run: Run) -> list[list[BranchRecord]]:
    """Branches by their depth in the graph; a report, which covers all of them, comes after all training."""
    depths: dict[str, int] = {}

    def depth(branch: BranchRecord) -> int:
        if branch.id not in depths:
            depths[branch.id] = 0  # runs reject cycles; this avoids hanging on a damaged folder
            sources = run.trained if branch.config.type == "report" else run.parents(branch)
            depths[branch.id] = max((depth(source) + 1 for source in sources), default=0)
        return depths[branch.id]

    last = max(depth(branch) for branch in run.branches)
    return [row for level in range(last + 1) if (row := [b for b in run.branches if depth(b) == level])]


def sources(run: Run, branch: BranchRecord) -> list[BranchRecord]:
    """The branches that arrows start from: the parents, except those that are ancestors of another parent."""
    parents = run.parents(branch)
    implied = {ancestor.id for parent in parents for ancestor in ancestors(run, parent)}
    return [parent for parent in parents if parent.id not in implied]


def ancestors(run: Run, branch: BranchRecord) -> list[BranchRecord]:
    return [found for parent in run.parents(branch) for found in (parent, *ancestors(run, parent))]


def place(run: Run, vertical: bool) -> tuple[list[PlacedBranch], float, float]:
    """Boxes with their corners, and the width and height of the drawing; each layer is centred.

    A vertical drawing is for narrow screens: a layer of more than two boxes spans several rows.
    """
    along, across = (BOX_HEIGHT, BOX_WIDTH) if vertical else (BOX_WIDTH, BOX_HEIGHT)
    rows = [row for layer in layers(run) for row in batched(layer, 2 if vertical else len(layer))]
    breadth = max(len(row) for row in rows) * (across + GAP_ACROSS) - GAP_ACROSS
    boxes = []
    for level, row in enumerate(rows):
        start = (breadth - len(row) * (across + GAP_ACROSS) + GAP_ACROSS) / 2
        for i, branch in enumerate(row):
            a, c = level * (along + GAP_ALONG), start + i * (across + GAP_ACROSS)
            boxes.append(PlacedBranch(branch, c, a) if vertical else PlacedBranch(branch, a, c))
    length = len(rows) * (along + GAP_ALONG) - GAP_ALONG
    return boxes, breadth if vertical else length, length if vertical else breadth


def batched(row: list[BranchRecord], size: int) -> list[list[BranchRecord]]:
    return [row[i : i + size] for i in range(0, len(row), size)]


def draw_graph(run: Run, vertical: bool = False) -> str:
    """The graph as an `<svg>` element, left to right or, for narrow screens, top to bottom."""
    boxes, width, height = place(run, vertical)
    svg = ET.Element(
        "svg", viewBox=f"-2 -2 {width + 4:g} {height + 4:g}", width=f"{width + 4:g}", height=f"{height + 4:g}"
    )
    svg.attrib |= {
        "class": "graph tall" if vertical else "graph across",
        "role": "img",
        "aria-label": describe_graph(run),
    }
    corners = {box.branch.id: box for box in boxes}
    for box in boxes:
        for parent in sources(run, box.branch):
            draw_arrow(svg, corners[parent.id], box, vertical)
    for box in boxes:
        draw_box(svg, run, box)
    return ET.tostring(svg, encoding="unicode")


def draw_arrow(svg: ET.Element, source: PlacedBranch, target: PlacedBranch, vertical: bool) -> None:
    """A curve from the source's far side to the target's near side."""
    if vertical:
        x1, y1 = source.x + BOX_WIDTH / 2, source.y + BOX_HEIGHT
        x2, y2 = target.x + BOX_WIDTH / 2, target.y
        bend = GAP_ALONG * 0.55
        path = f"M{x1:g} {y1:g} C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2 - ARROW:g}"
        head = f"{x2 - 5:g},{y2 - ARROW:g} {x2 + 5:g},{y2 - ARROW:g} {x2:g},{y2 - 1:g}"
    else:
        x1, y1 = source.x + BOX_WIDTH, source.y + BOX_HEIGHT / 2
        x2, y2 = target.x, target.y + BOX_HEIGHT / 2
        bend = GAP_ALONG * 0.55
        path = f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2 - ARROW:g} {y2:g}"
        head = f"{x2 - ARROW:g},{y2 - 5:g} {x2 - ARROW:g},{y2 + 5:g} {x2 - 1:g},{y2:g}"
    kind = "starts" if target.branch.trains else "uses"
    ET.SubElement(svg, "path", {"d": path, "class": f"edge {kind}"})
    ET.SubElement(svg, "polygon", {"points": head, "class": f"head {kind}"})


def draw_box(svg: ET.Element, run: Run, box: PlacedBranch) -> None:
    """Draw the name and state on top, then the stage's details, then its result."""
    branch, x, y = box.branch, box.x, box.y
    group = ET.SubElement(svg, "g", {"class": f"box {branch.state}"})
    ET.SubElement(group, "title").text = f"{branch.id}: {branch.config.type}, {branch.state}"
    size = {"width": f"{BOX_WIDTH}", "height": f"{BOX_HEIGHT}", "rx": "10"}
    ET.SubElement(group, "rect", {"x": f"{x:g}", "y": f"{y:g}", **size})
    ET.SubElement(group, "circle", {"cx": f"{x + 17:g}", "cy": f"{y + 19:g}", "r": "4.5", "class": "dot"})
    write(group, x + 29, y + 23.5, "name", shorten(branch.id, 20))
    write(group, x + 14, y + 43, "kind", f"{branch.config.type} · {branch.state}")
    for i, line in enumerate(details(run, branch)):
        write(group, x + 14, y + 61 + 16 * i, "detail", shorten(line, 29))
    outcome = result_line(run, branch)
    if outcome:
        write(group, x + 14, y + 98, "outcome", outcome)


def details(run: Run, branch: BranchRecord) -> list[str]:
    """What the stage works with, in at most two lines."""
    config = branch.config
    if isinstance(config, TrainStage):
        if branch.spec is None:
            known = [branch.variant, f"{size_text(config.model.image_size)} px"]
            return [" · ".join(part for part in known if part)]
        spec = branch.spec.backbone
        return [f"{spec.variant} · {size_text(spec.image_size)} px · patch {size_text(spec.patch)}"]
    return config.details(len(run.parents(branch)))


def result_line(run: Run, branch: BranchRecord) -> str:
    """The quality of a training stage's model, by its comparison measure."""
    if not branch.trains:
        return ""
    val, test, measure = branch.validated.last, run.tested(branch), branch.measure
    value, where = (val, "val") if test is None else (test, "test")
    if value is None:
        return ""
    return f"{measure.text(value)} {where}" if measure.share else f"{measure.words} {measure.text(value)} {where}"


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def write(parent: ET.Element, x: float, y: float, kind: str, text: str) -> None:
    ET.SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": kind}).text = text


def describe_graph(run: Run) -> str:
    """The graph in words."""
    told = []
    for branch in run.branches:
        source = ", ".join(parent.id for parent in run.parents(branch))
        told.append(f"{branch.id} ({branch.config.type}, {branch.state}{', from ' + source if source else ''})")
    return "Graph of stages: " + "; ".join(told)
