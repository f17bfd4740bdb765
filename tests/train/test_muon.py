from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config.task import task_class
from pipeline.config.training import OptimizerConfig
from pipeline.models.encoder import EncoderLayer
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone, build_spec
from pipeline.tasks.task import task_of
from pipeline.train import muon
from pipeline.train.adamw import AdamW
from pipeline.train.muon import Matrices, Muon, buckets, divide, orthogonalise
from pipeline.train.optim import matrix_shapes, parameter_groups


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([1e-12, 1.0, 1e6]),
    st.integers(0, 99),
)
def test_singular_values_come_near_one(number: int, rows: int, columns: int, scale: float, seed: int) -> None:
    """Down to a fiftieth of the largest one; the directions stay."""
    generator = torch.Generator().manual_seed(seed)
    u, s, vh = torch.linalg.svd(torch.randn(number, rows, columns, generator=generator).double(), full_matrices=False)
    matrices = u @ torch.diag_embed(s.clamp(min=s.max() / 50)) @ vh * scale
    found = u.mT @ orthogonalise(matrices) @ vh.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-6, rtol=0)


def test_zeros_stay_zeros() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert not orthogonalise(torch.zeros(3, 4, 4, dtype=dtype)).any()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_equals_torchs_muon(shape: tuple[int, int]) -> None:
    """Torch's computes in bf16, so ours does too here."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "weight_decay": 0.3, "matrices": (1, *shape)}
    optimizers = (
        Muon([group], lr=0.05, momentum=0.9, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.05, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs.detach() - start).norm()
    assert float((ours.detach() - theirs.detach()).norm()) < 0.03 * float(moved)


def test_everything_else_takes_adamws_step() -> None:
    spec = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=1, embed_dim=16)
    models, config = [], OptimizerConfig(name="muon", lr=0.01)
    for kind in (Muon, partial(AdamW, fused=True)):
        torch.manual_seed(0)
        model = MiniViT.from_spec(spec)
        optimizer = kind(parameter_groups(model, config), lr=0.01)
        model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        optimizer.step()
        models.append(dict(model.named_parameters()))
    ours, theirs = models
    differ = {name for name, value in ours.items() if not torch.equal(value, theirs[name])}
    layer = "transformer.layers.0."
    assert differ == {
        f"{layer}{name}.weight" if name != "in_proj" else f"{layer}self_attn.in_proj_weight"
        for name in ("in_proj", "self_attn.out_proj", "linear1", "linear2")
    }


def test_layers_of_decoders_count_too() -> None:
    task = task_of(task_class("mae").model_validate({"type": "mae"}))
    model = MiniViT.from_spec(task.model_spec(build_backbone("nano", image_size=28), 0, None))
    layers = [layer for layer in model.modules() if isinstance(layer, EncoderLayer)]
    shapes = matrix_shapes(model)
    assert len(shapes) == 4 * len(layers) > 4 * model.spec.backbone.depth
    assert all(number * rows * columns == weight.numel() for weight, (number, rows, columns) in shapes.items())
    assert shapes[model.transformer.layers[0].self_attn.in_proj_weight] == (3, 64, 64)


def test_queries_keys_and_values_are_orthogonalised_apart() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(24, 8))
    weight.grad = torch.randn(24, 8)
    weight.grad[:8] *= 1e-6
    Muon([{"params": [weight], "weight_decay": 0.0, "matrices": (3, 8, 8)}], lr=1.0).step()
    norms = weight.detach().view(3, 8, 8).norm(dim=(1, 2))
    torch.testing.assert_close(norms, norms.mean().expand(3), rtol=0.2, atol=0)


def test_the_work_is_divided_by_cost() -> None:
    assert divide([3, 1, 3, 3], 2) == [[0, 3], [2, 1]]
    assert divide([1], 3) == [[0], [], []]


def test_buckets_hold_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "LARGEST_BUCKET", 10)
    matrices = [Matrices({}, torch.empty(0), (1, 1, size)) for size in (4, 6, 12, 3)]
    assert [[one.shape[2] for one in bucket] for bucket in buckets(matrices)] == [[4, 6], [12], [3]]
    assert list(buckets([])) == []
