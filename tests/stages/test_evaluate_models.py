"""Errors before a cluster starts; an integration test compares the results of the command and the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.synthetic import SIDE, write_shards
from pipeline.config.cluster import ClusterConfig
from pipeline.errors import ConfigError, DataError, ModelError, PipelineError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.shards.named_sets import named_set
from pipeline.stages.evaluate_models import evaluate_models

CLASSES = ["black", "dark", "light", "white"]  # of the synthetic shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in `data`, models beside them."""
    folder = tmp_path_factory.mktemp("place")
    write_shards(folder / "data")
    models: dict[str, dict[str, Any]] = {
        "good": {},
        "black": {"background": (0, 0, 0)},
        "turned": {"classes": CLASSES[::-1]},
        "three": {"classes": CLASSES[:3]},
    }
    for name, options in models.items():
        classes = options.get("classes", CLASSES)
        spec = build_spec("nano", image_size=SIDE, patch_size=4, channels=1, num_classes=len(classes), depth=1)
        preprocess = Preprocess((0.4,), (0.3,), 1, (SIDE, SIDE), options.get("background", (255, 255, 255)))
        Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, classes).save(folder / name)
    (folder / "done").mkdir()
    (folder / "done" / "evaluation.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("models", "data", "out", "kind", "expected"),
    [
        (["missing"], "data", None, ModelError, "missing: does not exist"),
        (["timm:resnet18"], "data", None, ModelError, "timm:resnet18: found a ResNet"),
        (["good"], "nowhere", None, DataError, "nowhere': found no shards"),
        (["three"], "data", None, ConfigError, "has 4 classes, but the head of {place}/three has 3"),
        (["turned"], "data", None, ConfigError, "class 0 of {place}/data is 'black', but that of {place}/turned is"),
        (["good", "black"], "data", None, ConfigError, "{place}/good shows transparent pixels as [255, 255, 255], but"),
        (["good"], "data", "done", ConfigError, "--out: {place}/done already has an evaluation"),
    ],
)
def test_what_is_refused(
    place: Path, models: list[str], data: str, out: str | None, kind: type[PipelineError], expected: str
) -> None:
    references = [model if ":" in model else str(place / model) for model in models]
    with pytest.raises(kind) as caught:
        evaluate_models(
            references,
            named_set(str(place / data)),
            ClusterConfig(),
            batch_size=8,
            loader_workers=0,
            precision="fp32",
            out=place / out if out else None,
        )
    assert expected.format(place=place) in str(caught.value)
