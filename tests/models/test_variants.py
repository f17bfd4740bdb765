from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.errors import ModelError
from pipeline.models import VARIANTS, build_spec, count_parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds_a_spec(name: str) -> None:
    patch = VARIANTS[name].patch
    spec = build_spec(name, image_size=4 * patch, num_classes=10)
    assert spec.backbone.grid == (4, 4)
    assert spec.backbone.variant == name


@pytest.mark.parametrize(
    ("name", "image_size", "millions"),
    # Published sizes at 1,000 classes: DeiT's table 1, the ViT paper's table 1, Zhai et al. 2022's table 2.
    [("tiny", 224, 5.7), ("small", 224, 22.1), ("base", 224, 86.6), ("large", 224, 304.3), ("huge", 224, 632.0)],
)
def test_standard_sizes_have_the_published_parameters(name: str, image_size: int, millions: float) -> None:
    spec = build_spec(name, image_size=image_size, num_classes=1000)
    assert count_parameters(spec) / 1e6 == pytest.approx(millions, rel=0.005)


def test_small_sizes_are_small() -> None:
    counts = {v: count_parameters(build_spec(v, image_size=28, num_classes=10, channels=1)) for v in ("nano", "micro")}
    assert 0.15e6 < counts["nano"] < 0.25e6
    assert 0.6e6 < counts["micro"] < 1.2e6


def test_width_override_keeps_the_mlp_ratio_but_not_the_tutorials() -> None:
    assert build_spec("nano", image_size=28, num_classes=2, embed_dim=96, num_heads=3).backbone.mlp_dim == 384
    assert build_spec("tutorial", image_size=32, num_classes=2, embed_dim=64).backbone.mlp_dim == 2048


def test_without_class_token_pooling_is_average() -> None:
    assert build_spec("nano", image_size=28, num_classes=2, class_token=False).backbone.pool == "avg"


def test_wrong_names_get_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'micro'"):
        build_spec("mirco", image_size=28, num_classes=2)
    with pytest.raises(ModelError, match="did you mean 'embed_dim'"):
        build_spec("nano", image_size=28, num_classes=2, embed_dims=64)


def test_indivisible_image_is_refused() -> None:
    with pytest.raises(ModelError, match=r"image_size: the height 30 .* use 28 or 32"):
        build_spec("nano", image_size=30, num_classes=2)


def test_plans_do_not_import_torch() -> None:
    program = (
        "import sys; from pipeline.models import build_spec, forward_flops; import pipeline\n"
        "forward_flops(build_spec('nano', image_size=28, num_classes=2)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
