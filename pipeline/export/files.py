"""What stands beside an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.models.bundle import DESCRIPTION, Bundle, Preprocess, describe


def write_description(bundle: Bundle, folder: Path) -> None:
    """`model.json` beside a graph: what it expects of its input, and what its outputs are called."""
    write_json(folder / DESCRIPTION, describe(bundle.spec, bundle.preprocess, bundle.classes, bundle.provenance))


def own_words(preprocess: Preprocess) -> dict[str, Any]:
    """What timm and open_clip have no words for, or fewer: read when such an export is imported again."""
    return {"background": list(preprocess.background), "eval": preprocess.eval.model_dump()}
