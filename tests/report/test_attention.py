import base64
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.data import WHITE, DatasetConfig
from pipeline.errors import DataError
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone, build_spec
from pipeline.report.attention import (
    LARGEST,
    NUM_IMAGES,
    TestImage,
    attention_of_patches,
    choose,
    decode,
    heat,
    inspect_image,
    inspect_model,
    reduce,
)
from pipeline.report.collect import read_run
from pipeline.shards.members import Keys
from pipeline.shards.write import tar_member
from pipeline.targets import tool_targets

(LABELS,) = tool_targets({"class_id": ("cls",)})


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_images_of_different_classes_are_shown_with_what_the_model_makes_of_them(built_run: Path) -> None:
    dataset = read_run(built_run).config.datasets["test"]
    found, distances, filters = inspect_model(built_run / "stages" / "finetune-56" / "model", dataset)
    assert [glance.name for glance in found] == ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal"]
    assert all(0.1 <= glance.probability <= 1 and glance.predicted for glance in found)
    assert picture(found[0].image).shape == (28, 28, 3)
    assert picture(found[0].mean).shape == (14, 14, 4)
    assert len(found[0].heads) == 3
    assert picture(found[0].tokens).shape == (14, 14, 3)
    assert distances.heads.shape[1] == 3
    assert 0 < distances.heads.min() < distances.heads.max() < 56 * 2**0.5
    assert filters.components.shape[1:] == (4, 4)


def test_a_model_that_tells_no_images_apart_predicts_none() -> None:
    backbone = build_backbone("nano", image_size=8, patch_size=4, channels=1, depth=1)
    model = MiniViT.from_spec(ModelSpec(backbone, {"seg_head": HeadSpec("linear", 3)}, "segmentation")).eval()
    pixels = np.zeros((8, 8, 1), np.uint8)
    found, *_ = inspect_image(model, Preprocess((0.5,), (0.5,), 1, (8, 8)), [], [], TestImage("shard/7", pixels, None))
    assert (found.alt, found.predicted, picture(found.mean).shape) == ("shard/7", None, (2, 2, 4))


def test_missing_shards_are_an_error_a_user_can_fix(built_run: Path, tmp_path: Path) -> None:
    bundle = built_run / "stages" / "finetune-56" / "model"
    with pytest.raises(DataError, match="nowhere"):
        inspect_model(bundle, DatasetConfig(shards=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("class_token", [True, False])
def test_attention_is_that_of_the_last_block_on_patches_alone(class_token: bool) -> None:
    spec = build_spec("nano", image_size=28, channels=1, num_classes=3, class_token=class_token, registers=2)
    model = MiniViT.from_spec(spec).eval()
    batch = torch.randn(1, 1, 28, 28)
    with torch.inference_mode():
        maps = model.attention_maps(batch)[0, -1]
    found, whole = attention_of_patches(spec.backbone, maps), maps.numpy()
    assert found.shape == (2, 7, 7)
    prefix = 2 + class_token
    expected = whole[:, 0, prefix:] if class_token else whole[:, prefix:, prefix:].mean(axis=1)
    np.testing.assert_allclose(found.reshape(2, -1), expected, rtol=1e-5)


def test_the_first_of_each_class_goes_before_a_second() -> None:
    labels = [3, 3, 1, 3, 2]
    chosen = choose(TestImage(str(i), np.zeros((1, 1, 1), np.uint8), label) for i, label in enumerate(labels))
    assert [image.key for image in chosen] == ["0", "2", "4", "1", "3"]
    many = choose(TestImage(str(i), np.zeros((1, 1, 1), np.uint8), i) for i in range(100))
    assert [image.key for image in many] == [str(i) for i in range(NUM_IMAGES)]


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_sample_without_a_readable_image_is_passed_over(content: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    assert decode(buffer.getvalue()[: 512 + 512 * bool(content)], Keys(), LABELS, 3, WHITE) is None
    assert decode(b"torn", Keys(), LABELS, 3, WHITE) is None


def test_transparent_pixels_show_the_background() -> None:
    picture_file = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(picture_file, "PNG")
    sample = tar_member("a.png", picture_file.getvalue())
    for channels in (1, 3):
        shown = decode(sample, Keys(), LABELS, channels, (9, 9, 9))
        assert shown is not None
        assert (shown.pixels.shape, set(shown.pixels.ravel().tolist())) == ((4, 4, channels), {9})


def test_large_images_are_reduced_and_small_ones_left() -> None:
    assert reduce(np.zeros((500, 300, 3), np.uint8)).shape == (280, LARGEST, 3)
    assert reduce(np.zeros((28, 28, 1), np.uint8)).shape == (28, 28, 3)


def test_heat_is_opaque_where_attention_is_largest_and_bears_even_attention() -> None:
    alpha = heat(np.array([[0.1, 0.2], [0.3, 0.5]], np.float32))[..., 3]
    assert alpha.argmax() == 3
    assert alpha[0, 0] == 0
    spike = np.linspace(0.1, 0.2, 100, dtype=np.float32).reshape(10, 10)
    spike[0, 0] = 50
    assert np.median(heat(spike)[..., 3]) > 100
    assert not heat(np.full((2, 2), 0.25, np.float32))[..., 3].any()
