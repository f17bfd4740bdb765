"""The model card of an export: README.md with the Hub's metadata (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from pipeline import __version__
from pipeline.config.task import task_class
from pipeline.export.story import Figure, Story
from pipeline.files import write_whole
from pipeline.metrics.bootstrap import RESAMPLES
from pipeline.models.bundle import Bundle

CARD = "README.md"
MOST_CLASSES = 20  # named on the card
METHODS = {
    "Wilson": "Wilson's interval of a share of independent samples",
    "bootstrap": f"a bootstrap over whole images, {RESAMPLES} resamples",
}  # of intervals
FEATURES, CLASSIFIES = "image-feature-extraction", "image-classification"


def write_card(module: ModuleType, bundle: Bundle, folder: Path, story: Story) -> None:
    """Write `folder/README.md`; `module` is the format's writer, whose LIBRARY, USE and `notes` document its use."""
    text = f"---\n{yaml.safe_dump(metadata(module, bundle, story), sort_keys=False, allow_unicode=True)}---\n\n"
    text += "\n".join(_sections(module, bundle, folder, story))
    write_whole(folder / CARD, lambda path: path.write_text(text, encoding="utf-8"))


def metadata(module: ModuleType, bundle: Bundle, story: Story) -> dict[str, Any]:
    """The header that the Hub reads."""
    found: dict[str, Any] = {"license": story.license} if story.license else {}
    found |= {"library_name": module.LIBRARY} if module.LIBRARY else {}
    found |= {"pipeline_tag": pipeline_tag(bundle), "tags": ["vision", "vit", "minivit", bundle.spec.task]}
    results = [_result(bundle, figure) for figure in story.figures]
    return found | ({"model-index": [{"name": title(bundle, story), "results": results}]} if results else {})


def pipeline_tag(bundle: Bundle) -> str:
    """The Hub's name for the task; feature extraction for a task unknown to this version."""
    if bundle.spec.is_classifier:
        return CLASSIFIES
    try:
        return task_class(bundle.spec.task).pipeline_tag
    except ValueError:
        return FEATURES


def title(bundle: Bundle, story: Story) -> str:
    """The pipeline's name and the stage, as far as known."""
    stage = bundle.provenance.get("stage")
    return " / ".join(str(part) for part in (story.name, stage) if part) or f"MiniViT {bundle.spec.backbone.variant}"


def _result(bundle: Bundle, figure: Figure) -> dict[str, Any]:
    metric = {"type": figure.measure.name, "name": figure.measure.title, "value": round(figure.value, 6)}
    return {
        "task": {"type": pipeline_tag(bundle)},
        "dataset": {"type": figure.data, "name": figure.data, "revision": figure.digest},
        "metrics": [metric],
    }


def _sections(module: ModuleType, bundle: Bundle, folder: Path, story: Story) -> list[str]:
    lines = [f"# {title(bundle, story)}", "", *_model(bundle), "", "## Use", "", module.USE.format(folder=folder.name)]
    if notes := module.notes(bundle):
        lines += ["", "## Limits of this format", "", *(f"- {note}" for note in notes)]
    if story.data:
        rows = [[use.stage, use.role, use.name, f"`{use.digest}`"] for use in story.data]
        lines += ["", "## Data", "", *markdown_table(("stage", "role", "data set", "index digest"), rows)]
    lines += ["", "## Figures", "", *(_figures(story.figures) or ["These weights were not measured."])]
    lines += _lineage(story)
    if bundle.provenance:
        lines += ["", "## Weights", "", "```yaml", _yaml(bundle.provenance), "```"]
    return [*lines, ""]


def _model(bundle: Bundle) -> list[str]:
    spec, preprocess = bundle.spec.backbone, bundle.preprocess
    height, width = spec.image_size
    parameters = sum(prod(tensor.shape) for tensor in bundle.state.values())
    heads = ", ".join(f"{name} ({head.kind})" for name, head in bundle.spec.heads.items()) or "none"
    lines = [
        f"A Vision Transformer ({spec.variant}, {parameters:,} parameters) for the task {bundle.spec.task}: images of "
        f"{height} x {width} pixels in {spec.channels} channel(s), patches of {spec.patch[0]} x {spec.patch[1]}, "
        f"heads: {heads}.",
        "",
        f"Pixels are (value / 255 - mean) / std with mean {list(preprocess.mean)} and std {list(preprocess.std)}; "
        f"images are brought to the model's size by `{preprocess.eval.model_dump()}`.",
    ]
    if bundle.classes:
        shown = ", ".join(bundle.classes[:MOST_CLASSES])
        more = f" and {len(bundle.classes) - MOST_CLASSES} more" if len(bundle.classes) > MOST_CLASSES else ""
        lines += ["", f"Classes: {shown}{more}."]
    return lines


def _figures(figures: Sequence[Figure]) -> list[str]:
    rows = []
    for figure in figures:
        text, ends = figure.measure.text, figure.interval
        interval = f"{text(ends[0], 2)} to {text(ends[1], 2)} ({figure.method})" if ends else ""
        samples = "" if figure.samples is None else f"{figure.samples:,}"
        rows.append([figure.measure.title, text(figure.value, 2), interval, figure.data, samples])
    if not rows:
        return []
    used = [f"{name}: {how}." for name, how in METHODS.items() if any(name == figure.method for figure in figures)]
    told = ["", " ".join(used)] if used else []
    return [*markdown_table(("measure", "value", "95 % interval", "data set", "samples"), rows), *told]


def _lineage(story: Story) -> list[str]:
    if not story.steps:
        return []
    rows = [
        [step.stage, step.type, step.source or "random weights", step.teacher or "", f"{step.samples or 0:,}"]
        for step in story.steps
    ]
    lines = ["", "## Lineage", "", *markdown_table(("stage", "type", "starts from", "teacher", "samples seen"), rows)]
    for step in story.steps:
        lines += ["", f"### {step.stage}", ""]
        lines += [f"Surgery: {step.surgery}", ""] if step.surgery else []
        lines += ["```yaml", _yaml(step.settings), "```"]
    return [*lines, "", f"Trained with minivit-pipeline {__version__}."]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
