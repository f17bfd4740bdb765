from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.models import Bundle, MiniViT, Preprocess, load_bundle
from pipeline.models import bundle as bundle_file

Make = Callable[..., MiniViT]
CLASSES = ["ant", "bee", "cat", "dog", "elk"]
RGB = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 3, (16, 16))


@pytest.fixture
def bundle(small_model: Make) -> Bundle:
    model = small_model(registers=1)
    return Bundle(model.state_dict(), model.spec, RGB, CLASSES, {"run": "x"})


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    loaded = load_bundle(bundle.save(tmp_path / "model"))
    assert (loaded.spec, loaded.preprocess) == (bundle.spec, bundle.preprocess)
    assert (loaded.classes, loaded.provenance) == (CLASSES, {"run": "x"})
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in bundle.state.items())
    assert os.listdir(tmp_path) == ["model"]


def test_how_images_are_resized_is_kept_and_squash_where_a_bundle_says_nothing(bundle: Bundle, tmp_path: Path) -> None:
    how = PlainConfig(resize="shorter", crop_pct=0.9)
    folder = dataclasses.replace(bundle, preprocess=dataclasses.replace(RGB, eval=how)).save(tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    assert description["preprocess"]["eval"] == {"resize": "shorter", "crop_pct": 0.9}
    assert load_bundle(folder).preprocess.eval == how
    del description["preprocess"]["eval"]
    (folder / "model.json").write_text(json.dumps(description))
    assert load_bundle(folder).preprocess.eval == PlainConfig()
    description["preprocess"]["eval"] = {"crop_pct": 2}
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"eval\.crop_pct: found 2"):
        load_bundle(folder)


def test_the_background_is_kept_and_white_where_a_bundle_says_none(bundle: Bundle, tmp_path: Path) -> None:
    black = dataclasses.replace(RGB, background=(0, 0, 0))
    folder = dataclasses.replace(bundle, preprocess=black).save(tmp_path / "model")
    assert load_bundle(folder).preprocess == black
    description = json.loads((folder / "model.json").read_text())
    del description["preprocess"]["background"]
    (folder / "model.json").write_text(json.dumps(description))
    assert load_bundle(folder).preprocess.background == (255, 255, 255)
    description["preprocess"]["background"] = [0, 256, 0]
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"preprocess\.background: found \[0, 256, 0\]"):
        load_bundle(folder)


def test_class_names_have_one_spelling(bundle: Bundle) -> None:
    other = dataclasses.replace(bundle, classes=["a\u0308", "caf\udce9", "cat", "dog", "elk"])
    assert other.classes == ["ä", r"caf\xe9", "cat", "dog", "elk"]


def test_settings_that_it_was_measured_by_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    measured = dataclasses.replace(bundle, task_settings={"inference": {"size": 56}})
    assert load_bundle(measured.save(tmp_path / "model")).task_settings == {"inference": {"size": 56}}
    assert "task_settings" not in json.loads((bundle.save(tmp_path / "model") / "model.json").read_text())


def test_saving_again_replaces(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "model")
    dataclasses.replace(bundle, provenance={"run": "y"}).save(tmp_path / "model")
    assert load_bundle(tmp_path / "model").provenance == {"run": "y"}
    assert os.listdir(tmp_path) == ["model"]


def test_failed_save_leaves_the_old_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.save(tmp_path / "model")

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_file, "sync", full_disk)
    with pytest.raises(OSError, match="No space"):
        dataclasses.replace(bundle, provenance={"run": "y"}).save(tmp_path / "model")
    assert load_bundle(tmp_path / "model").provenance == {"run": "x"}
    assert os.listdir(tmp_path) == ["model"]


def test_normalise_is_per_channel() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    normal = RGB.normalise(images, torch.float64)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - RGB.mean[channel]) / RGB.std[channel]
        torch.testing.assert_close(normal[:, channel], expected, atol=1e-5, rtol=1e-5)
    assert RGB.normalise(images, torch.bfloat16).dtype == torch.bfloat16


def test_missing_or_torn_files_are_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"found no model\.json"):
        load_bundle(tmp_path)
    folder = bundle.save(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_bundle(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match=r"model\.json: not a model description"):
        load_bundle(folder)


def test_weights_that_do_not_fit_name_the_tensor(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "model")
    path = folder / "model.json"
    raw = json.loads(path.read_text())
    raw["spec"]["backbone"]["tokens"]["registers"] = 2
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"'(registers|pos_embed)' has shape \[1, .*\]; its spec requires \[1, "):
        load_bundle(folder)


def test_format_1_is_a_classifier(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.save(tmp_path / "model") / "model.json"
    raw = json.loads(path.read_text())
    assert raw["format_version"] == 2
    path.write_text(json.dumps(raw | {"format_version": 1, "spec": raw["spec"]["backbone"] | {"num_classes": 5}}))
    assert load_bundle(path.parent).spec == bundle.spec
    path.write_text(json.dumps(raw | {"format_version": 3}))
    with pytest.raises(ModelError, match=r"found format version 3, but this version of the package reads 1 to 2"):
        load_bundle(path.parent)


def test_classes_must_match_the_head(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="names 1 classes, but the model's head has 5"):
        dataclasses.replace(bundle, classes=["ant"]).save(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mean": (0.5,)}, "one per channel"), ({"std": (0.2, 0.0, 0.2)}, "above 0")],
)
def test_impossible_preprocessing_is_refused(options: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(RGB, **options)
