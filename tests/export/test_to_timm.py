from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from pipeline.errors import ModelError
from pipeline.export import export
from pipeline.models import Bundle, MiniViT

Build = Callable[..., Bundle]


@pytest.mark.parametrize("options", [{}, {"pool": "avg", "registers": 2, "layer_scale": 0.3}])
def test_create_model_loads_it_strictly(
    make_bundle: Build, model_of: Callable[[Bundle], MiniViT], tmp_path: Path, options: dict[str, object]
) -> None:
    bundle = make_bundle(**options)
    path = export("timm", bundle, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model = timm.create_model(config["architecture"], checkpoint_path=str(path), **config["model_args"]).eval()
    assert config["background"] == [255, 255, 255]
    images = torch.randn(2, 1, 28, 28)
    expected = model_of(bundle)(images)
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    hub = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(hub(images), expected, atol=1e-5, rtol=1e-5)
    assert hub.pretrained_cfg["mean"] == [0.3]


def test_what_timm_cannot_hold_leaves_nothing_behind(make_bundle: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.activation"):
        export("timm", make_bundle(activation="relu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
