from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import MiniViT, ModelSpec, TokenSchema, build_spec, count_parameters, forward_flops
from pipeline.models.spec import Windows
from pipeline.models.variants import VARIANTS

base = build_spec("nano", image_size=(28, 20), num_classes=7)
SPECS: dict[str, ModelSpec] = {
    **{name: build_spec(name, image_size=4 * row.patch, num_classes=10) for name, row in VARIANTS.items()},
    "grey, average pool": build_spec("nano", image_size=28, num_classes=10, channels=1, pool="avg"),
    "no class token": build_spec("nano", image_size=28, num_classes=10, class_token=False),
    "registers, layer scale, qk norm": build_spec(
        "nano", image_size=28, num_classes=3, registers=4, layer_scale=0.1, qk_norm=True
    ),
    "distillation and mask": build_spec("nano", image_size=28, num_classes=7, dist_token=True, mask_token=True),
    "uncovered prefix": base.with_backbone(tokens=TokenSchema(registers=2, positions_cover_prefix=False)),
    "CLIP's": build_spec("nano", image_size=28, num_classes=3, embed_norm=True, activation="quick_gelu"),
    "sine-cosine": base.with_backbone(positions="sincos"),
    "no positions": base.with_backbone(positions="none"),
    "windows": build_spec("nano", image_size=32, num_classes=3, windows=Windows(4, global_every=2)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_parameters_equal_the_counted(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch")
    assert count_parameters(spec) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_flops_equal_the_counted_forward(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch").eval()
        images = torch.empty(1, spec.backbone.channels, *spec.backbone.image_size)
    # torch's counter does not know the CPU's fused attention; the plain one is the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    assert forward_flops(spec) == counter.get_total_flops()


def test_flops_at_another_size() -> None:
    spec = build_spec("nano", image_size=28, num_classes=10)
    larger = build_spec("nano", image_size=56, num_classes=10)
    assert forward_flops(spec, (56, 56)) == forward_flops(larger)
