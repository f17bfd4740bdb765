"""Measures how far a surgery moves the outputs: both models get the same images, each at its own size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.minivit import MiniViT
from pipeline.models.model_costs import forward_flops
from pipeline.models.model_spec import ModelSpec
from pipeline.models.surgery_report import Probe
from pipeline.models.tracing import CALLING_MODULES

PROBE_IMAGES = 4
# Limits the probe of a large model to about a second on a CPU: above this many FLOPs it takes a single image, and if
# that is still too much, only the first layers.
PROBE_FLOPS = 1e11


def probe_outputs(
    old_state: dict[str, Tensor], old: ModelSpec, new_state: dict[str, Tensor], new: ModelSpec, same_heads: bool
) -> Probe:
    """Compare two models in fp32 eval mode; the images are fixed, so equal surgeries give equal reports."""
    work = forward_flops(old) + forward_flops(new)
    count = PROBE_IMAGES if PROBE_IMAGES * work <= PROBE_FLOPS else 1
    depth = new.backbone.depth
    layers = max(min(int(depth * PROBE_FLOPS / work), depth), 1)
    pictures = smooth_images(count)
    with CALLING_MODULES:
        before, before_logits = _features(old_state, old, pictures, layers)
        after, after_logits = _features(new_state, new, pictures, layers)
    change = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
    return Probe(
        images=count,
        layers=layers,
        feature_cosine=F.cosine_similarity(before, after).mean().item(),
        feature_change=change.mean().item(),
        logit_change=_largest_change(before_logits, after_logits) if same_heads else None,
    )


def _largest_change(before: Tensor | None, after: Tensor | None) -> float | None:
    if before is None or after is None or before.shape != after.shape:
        return None
    return (after - before).abs().max().item()


def smooth_images(count: int) -> Tensor:
    """[count, 3, 64, 64] random fields of unit variance, as smooth as photographs: noise with a 1/f spectrum."""
    noise = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    frequency = torch.fft.fftfreq(64)[:, None].square() + torch.fft.rfftfreq(64)[None].square()
    spectrum = torch.fft.rfft2(noise) / frequency.sqrt().clamp_min(1 / 64)
    images = torch.fft.irfft2(spectrum, s=(64, 64))
    return (images - images.mean()) / images.std()


@torch.inference_mode()
def _features(state: dict[str, Tensor], spec: ModelSpec, pictures: Tensor, layers: int) -> tuple[Tensor, Tensor | None]:
    """Mean patch features [B, D] after `layers` layers; after all of them also the logits, if they are the output."""
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    size, channels = spec.backbone.image_size, spec.backbone.channels
    images = F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)
    images = images[:, torch.arange(channels) % 3] if channels > 1 else images.mean(dim=1, keepdim=True)
    model.eval()
    if layers < spec.backbone.depth:
        return model.forward_intermediates(images, [layers - 1])[0].mean(dim=(2, 3)), None
    features = model.features(images, spec.reads._replace(num_tokens=None))
    output = model.apply_heads(features) if spec.num_classes else None
    return features.patches.mean(dim=1), output if isinstance(output, Tensor) else None
