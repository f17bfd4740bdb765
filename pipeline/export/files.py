"""What stands beside an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.models.bundle import DESCRIPTION, Bundle, Preprocess, describe
from pipeline.models.heads import head_kind
from pipeline.models.spec import ModelSpec


def write_description(bundle: Bundle, folder: Path) -> None:
    """`model.json` beside a graph: what it expects of its input, and what its outputs are called."""
    write_json(folder / DESCRIPTION, describe(bundle.spec, bundle.preprocess, bundle.classes, bundle.provenance))


def output_names(spec: ModelSpec) -> list[str]:
    """What a graph's outputs are called: the head's own word where there is one, names of heads, or `features`."""
    answering = {}
    for name, head in spec.heads.items():
        kind = head_kind(head.kind)
        if kind.reads(head, spec.backbone) is not None and kind.refines(head) is None:
            answering[name] = kind.output
    return list(answering) if len(answering) > 1 else [*answering.values()] or ["features"]


def own_words(preprocess: Preprocess) -> dict[str, Any]:
    """What timm and open_clip have no words for, or fewer: read when such an export is imported again."""
    return {"background": list(preprocess.background), "eval": preprocess.eval.model_dump()}
