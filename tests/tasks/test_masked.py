from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ModelError
from pipeline.models.bundle import Preprocess
from pipeline.models.drop_path import sample_keys
from pipeline.models.masking import random_masking
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.patch_embed import patchify
from pipeline.models.spec import Pair, Windows
from pipeline.models.variants import build_backbone
from pipeline.tasks._masked import MaskedModule, masked_pixels, patch_scale
from pipeline.tasks.mae import Task as MAETask
from pipeline.tasks.simmim import Task as SimMIMTask
from pipeline.tasks.task import BaseTask

SIZES = [((16, 16), (4, 4)), ((16, 24), (4, 4)), ((8, 8), (2, 2)), ((12, 12), (4, 6))]
TASKS = [MAETask(), MAETask(norm_pixels=False), SimMIMTask(), SimMIMTask(norm_pixels=True, mask_unit=2)]
IDS = ["mae", "mae-raw", "simmim", "simmim-units-normalised"]


def module_of(task: BaseTask, **options: object) -> MaskedModule:
    """A task on a small model of images [2, 16, 16] in patches of 4."""
    torch.manual_seed(0)
    settings = {"patch_size": 4, "depth": 3, "embed_dim": 32, "num_heads": 2, "registers": 1, **task.backbone_fields()}
    backbone = build_backbone("nano", image_size=16, channels=2, **{**settings, **options})
    model = MiniViT.from_spec(ModelSpec(backbone, task.heads(backbone, 0), task.type))
    module = task.module(model, [], Preprocess((0.5, 0.5), (0.2, 0.2), 2, (16, 16)))
    assert isinstance(module, MaskedModule)
    return module


def losses_of(
    module: MaskedModule, images: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.ones(len(images)) if weights is None else weights
    return module({"image": images}, {}, weights, {"image": sample_keys(3, slots)})


@pytest.mark.parametrize(("size", "patch"), [((28, 28), (4, 4)), ((12, 30), (3, 5)), ((8, 8), (1, 1))])
def test_targets_are_the_masked_patches_of_the_image(size: Pair, patch: Pair) -> None:
    images, (p, q) = torch.rand(3, 2, *size), patch
    masking = random_masking(sample_keys(1, torch.arange(3)), (size[0] // p, size[1] // q), 0.75)
    pixels = masked_pixels(images, masking, patch)
    for image, numbers, found in zip(images, masking.masked.tolist(), pixels, strict=True):
        for number, patch_found in zip(numbers, found, strict=True):
            row, column = divmod(number, size[1] // q)
            expected = image[:, row * p : (row + 1) * p, column * q : (column + 1) * q]
            assert torch.equal(patch_found.view(2, p, q), expected)


def test_each_patch_is_normalised_by_itself() -> None:
    pixels = torch.rand(2, 5, 48) * torch.linspace(0.5, 9, 10).view(2, 5, 1) + torch.rand(2, 5, 1)
    mean, deviation = patch_scale(pixels)
    normalised = (pixels - mean) / deviation
    assert normalised.mean(dim=-1).abs().max() < 1e-5
    assert (normalised.std(dim=-1, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("values", [1, 16])
def test_a_flat_patch_has_targets_of_zero(values: int) -> None:
    pixels = torch.full((1, 1, values), 0.3)
    mean, deviation = patch_scale(pixels)
    assert not ((pixels - mean) / deviation).any()


@pytest.mark.parametrize(("size", "patch"), SIZES)
@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_trains_at_any_size_and_patch(task: BaseTask, size: Pair, patch: Pair) -> None:
    """Every parameter that a step at this size can reach gets a gradient."""
    module = module_of(task)
    module.model.patch = patch
    outputs = losses_of(module, torch.randn(3, 2, *size), torch.arange(3))
    outputs.losses.sum().backward()
    without = [name for name, p in module.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert outputs.losses.shape == (1,)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_the_loss_is_over_masked_pixels_alone(task: BaseTask) -> None:
    """Written out: a mean over the masked pixels of the batch times its samples."""
    module, images, slots = module_of(task), torch.randn(4, 2, 16, 16), torch.arange(4)
    module.eval()
    _, (predicted, masking, patch) = losses_of(module, images, slots)
    mask = masking.as_mask()
    target = patchify(images, patch)
    full = torch.zeros_like(target).scatter(1, masking.masked[..., None].expand(-1, -1, 32), predicted)
    scale = target.std(dim=2, correction=0, keepdim=True) if module.norm_pixels else torch.ones(4, 16, 1)
    distance = F.mse_loss if isinstance(task, MAETask) else F.l1_loss
    expected = distance((full / scale)[mask], (target / scale)[mask])
    sums, _ = losses_of(module, images, slots)
    assert module.means(sums)["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_a_sample_is_masked_alike_wherever_it_is(task: BaseTask) -> None:
    """The loss of a batch is that of its parts, in any order; a stand-in counts nowhere."""
    module, images, slots = module_of(task), torch.randn(6, 2, 16, 16), torch.arange(10, 16)
    whole = losses_of(module, images, slots)
    order = torch.tensor([4, 1, 5, 0, 2, 3])
    parts = [losses_of(module, images[part], slots[part]) for part in (order[:2], order[2:])]
    assert torch.allclose(parts[0].losses + parts[1].losses, whole.losses, rtol=1e-5)
    assert torch.allclose(parts[0].sums + parts[1].sums, whole.sums, rtol=1e-5)
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    some = losses_of(module, images.index_fill(0, torch.tensor([4, 5]), 0.0), slots, weights)
    assert torch.allclose(some.losses, losses_of(module, images[:4], slots[:4]).losses, rtol=1e-5)
    assert some.sums[1] == 4
    other = losses_of(module, images, slots + 100)
    assert not torch.allclose(other.losses, whole.losses, rtol=1e-5), "another slot, another mask"


@pytest.mark.parametrize("task", TASKS[::3], ids=IDS[::3])
def test_it_learns_what_pictures_look_like(task: BaseTask) -> None:
    """Of waves across the picture; on other masks than it was trained with."""
    module, slots = module_of(task), torch.arange(32)
    across = torch.linspace(0, 6, 16) + torch.rand(32, 1, 1, 1) * 6
    images = across.sin().expand(32, 2, 16, 16) + 0.2 * torch.linspace(-1, 1, 16)[:, None]
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    before = losses_of(module, images, slots + 10_000).losses.item()
    for step in range(30):
        optimizer.zero_grad()
        (losses_of(module, images, slots + 32 * step).losses.sum() / 32).backward()
        optimizer.step()
    assert losses_of(module, images, slots + 10_000).losses.item() < 0.85 * before


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize("task", TASKS[::2], ids=IDS[::2])
def test_predicts_features_of_whole_images(task: BaseTask, pool: str) -> None:
    module = module_of(task, pool=pool).eval()
    images = torch.randn(3, 2, 16, 16)
    features = module.predict(images, [(16, 16)] * 3)
    assert [len(row) for row in features] == [32] * 3
    pooled = module.model.forward_features(images)
    pooled = pooled[:, 0] if pool == "cls" else pooled[:, 2:].mean(dim=1)
    assert torch.allclose(torch.tensor(features), module.head.norm(pooled), atol=1e-5)


def test_what_is_left_out_fills_no_windows() -> None:
    backbone = build_backbone("nano", image_size=16, patch_size=4, windows=Windows(2), mask_token=True)
    with pytest.raises(ModelError, match=r"^model\.windows: the encoder sees a few patches of each image"):
        MAETask().model_spec(backbone, 0)
    assert SimMIMTask().model_spec(backbone, 0).backbone.windows


def test_a_square_as_large_as_the_image_is_refused() -> None:
    backbone = build_backbone("nano", image_size=(16, 24), patch_size=4, mask_token=True)
    with pytest.raises(ModelError, match=r"^task\.mask_unit: found 6, .* all 4 x 6 patches.*; use less than 6$"):
        SimMIMTask(mask_unit=6).model_spec(backbone, 0)
    assert SimMIMTask(mask_unit=5).model_spec(backbone, 0).heads
