from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.export import GraphConfig
from pipeline.config.task import task_class
from pipeline.export import export
from pipeline.models import Bundle, MiniViT
from pipeline.models.surgery_probe import probe_outputs


@pytest.mark.parametrize("any_size", [True, False])
def test_loaded_graph_gives_the_same_logits_for_any_batch(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path, any_size: bool
) -> None:
    """A model that evaluates images at a size other than that of its positions."""
    bundle = make_bundle(image_size=56)
    program = torch.export.load(export("torch-export", bundle, tmp_path / "out", GraphConfig(any_size=any_size)))
    program = program.module()
    for batch, height in ((1, 56), (5, 28 if any_size else 56)):
        images = torch.randn(batch, 1, height, 56)
        torch.testing.assert_close(program(images), model_of(bundle)(images), atol=1e-5, rtol=1e-5)


def test_stages_export_and_probe_at_the_same_time(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """A run's stages are threads of one process, and tracing changes how modules are called in all of them."""
    bundle, numbers = make_bundle(), range(3)

    def probe(_: int) -> float:
        return probe_outputs(bundle.state, bundle.spec, bundle.state, bundle.spec, True).feature_change

    with ThreadPoolExecutor(6) as pool:
        paths = pool.map(lambda number: export("torch-export", bundle, tmp_path / str(number)), numbers)
        changes = [change for _ in range(10) for change in pool.map(probe, numbers)]
        assert [path.name for path in paths] == ["model.pt2"] * 3
    assert changes == [0.0] * 30


@pytest.mark.parametrize(
    ("task", "settings", "shape"),
    [
        ("mae", {"decoder": {"dim": 32, "depth": 1}}, (2, 50, 64)),
        ("lejepa", {}, (2, 64)),
    ],
)
def test_models_without_classes_are_exported_too(
    make_bundle: Callable[..., Bundle], tmp_path: Path, task: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """A head that the model calls is the output; a model without one gives its features."""
    plain = make_bundle()
    spec = task_class(task)(**settings).model_spec(plain.spec.backbone, 0)
    model = MiniViT.from_spec(spec).eval()
    bundle = Bundle(model.state_dict(), spec, plain.preprocess)
    program = torch.export.load(export("torch-export", bundle, tmp_path / "out")).module()
    images = torch.randn(2, 1, 28, 28)
    assert program(images).shape == shape
    torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-5)
