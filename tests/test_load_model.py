from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import load_model
from pipeline.errors import DataError, ModelError
from pipeline.export import export
from pipeline.models import Bundle, HeadSpec, MiniViT, ModelSpec, Preprocess, build_backbone, build_spec
from pipeline.models.bundle import load_bundle
from pipeline.tasks.base import TaskModule
from pipeline.tasks.classification.module import Classification

CLASSES = ["ant", "bee", "cat"]


def write_model(
    folder: Path, mark: str, classes: list[str] | None = CLASSES, channels: int = 1, **preprocessing: Any
) -> None:
    spec = build_spec("nano", image_size=28, num_classes=3, channels=channels, depth=1)
    preprocess = Preprocess((0.3,) * channels, (0.35,) * channels, channels, (28, 28), **preprocessing)
    torch.manual_seed(0)
    state = MiniViT.from_spec(spec).state_dict()
    state["mlp_head.1.bias"][0] = len(mark)
    Bundle(state, spec, preprocess, classes, {"mark": mark}).save(folder)


def write_stage(stage: Path, ended: float, mark: str, state: str = "finished", **status: object) -> None:
    write_model(stage / "model", mark)
    (stage / "status.json").write_text(json.dumps({"state": state, "type": "finetune", "ended": ended, **status}))


def mark_of(path: Path) -> int:
    """The length of the mark a model was written with."""
    return int(load_model(path).mlp_head[1].bias[0].item())


def test_export_stage_and_run_folders(tmp_path: Path) -> None:
    write_stage(tmp_path / "stages" / "one", 1.0, "a")
    write_stage(tmp_path / "stages" / "two", 3.0, "aa")
    write_stage(tmp_path / "stages" / "three", 4.0, "aaa", state="failed")
    write_stage(tmp_path / "stages" / "check", 5.0, "aaaa", type="evaluate")
    assert mark_of(tmp_path / "stages" / "one" / "model") == 1
    assert mark_of(tmp_path / "stages" / "one") == 1
    assert mark_of(tmp_path) == 2


def test_fan_out_gives_the_best_branch(tmp_path: Path) -> None:
    """Not the one that ended last, nor what a branch left behind when it ran again."""
    stage = tmp_path / "stages" / "pretrain"
    write_stage(tmp_path / "stages" / "before", 0.5, "aaaaa")
    write_stage(stage / "nano", 1.0, "a", started=0.6, result={"accuracy": 0.7})
    write_stage(stage / "micro", 2.0, "aa", started=0.7, result={"accuracy": 0.6})
    write_stage(stage / "micro.superseded-1", 3.0, "aaa", result={"accuracy": 0.9})
    write_stage(stage / "tiny", 4.0, "aaaa", state="failed", result={"accuracy": 0.9})
    assert mark_of(stage) == 1
    assert mark_of(tmp_path) == 1
    assert mark_of(stage / "micro") == 2


def test_of_equal_branches_the_one_that_began_first(tmp_path: Path) -> None:
    write_stage(tmp_path / "stages" / "pretrain" / "a", 3.0, "a", started=1.5, result={"accuracy": 0.5})
    write_stage(tmp_path / "stages" / "pretrain" / "b", 2.0, "aa", started=1.0, result={"accuracy": 0.5})
    assert mark_of(tmp_path) == 2


def test_branches_without_validation_cannot_be_compared(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "pretrain"
    write_stage(stage / "nano", 1.0, "a")
    assert mark_of(stage) == 1
    write_stage(stage / "micro", 2.0, "aa", result={"accuracy": 0.6})
    with pytest.raises(ModelError, match="branch nano has no validation accuracy"):
        load_model(stage)


@pytest.mark.parametrize("format_name", ["timm", "hf"])
def test_an_export_in_anothers_layout_is_named(tmp_path: Path, format_name: str) -> None:
    write_model(tmp_path / "ours", "a", channels=3)
    written = export(format_name, load_bundle(tmp_path / "ours"), tmp_path / format_name)
    folder = written if written.is_dir() else written.parent
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert str(caught.value).startswith(
            f"{path}: found weights in another layout, such as timm's or Hugging Face's;"
        )
        assert "give the export in the format safetensors" in str(caught.value)


def test_nothing_to_load_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelError, match="found no finished model"):
        load_model(tmp_path)
    write_stage(tmp_path / "stages" / "one", 1.0, "a", state="running")
    with pytest.raises(ModelError, match="no training stage of this run has finished"):
        load_model(tmp_path)


def test_loaded_model_is_ready(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "a")
    model = load_model(tmp_path / "model")
    assert isinstance(model, MiniViT)
    assert not model.training
    assert model.classes == CLASSES
    assert model.preprocess.image_size == (28, 28)


def test_predict_ranks_labels(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "a")
    model = load_model(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    from_path, from_image = model.predict([tmp_path / "image.png", Image.fromarray(pixels)], top_k=2)
    assert from_path == from_image
    assert len(from_path) == 2
    images = model.preprocess.normalise(torch.from_numpy(pixels)[None, None])
    probabilities = model(images).softmax(-1)[0]
    best = int(probabilities.argmax())
    assert from_path[0] == (CLASSES[best], pytest.approx(probabilities[best].item()))
    assert sum(p for _, p in model.predict([tmp_path / "image.png"])[0]) == pytest.approx(1.0)


def test_predict_refuses_options_that_the_task_does_not_know_and_a_path_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "a")
    model = load_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"^predict: topk is not an option of a classification model; allowed: top_k"):
        model.predict([Image.new("L", (28, 28))], topk=2)
    with pytest.raises(DataError, match=r"^predict: expected a list of images; give \['image.png'\]"):
        model.predict("image.png")


def test_predict_converts_size_and_channels(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "a", classes=None, channels=3)
    grey = Image.fromarray(np.zeros((90, 40), dtype=np.uint8))
    ((label, _), *_) = load_model(tmp_path / "model").predict([grey])[0]
    assert label in {"0", "1", "2"}


@pytest.mark.parametrize("channels", [1, 3])
def test_predict_sees_transparent_images_on_the_models_background(tmp_path: Path, channels: int) -> None:
    write_model(tmp_path / "model", "a", channels=channels, background=(255, 0, 0))
    model = load_model(tmp_path / "model")
    ink = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (5, 5, 20, 20))
    seen = Image.new("RGB", (28, 28), (255, 0, 0))
    seen.paste((0, 0, 0), (5, 5, 20, 20))
    for image in (ink, seen):
        image.save(tmp_path / f"{image.mode}.png")
    as_files = model.predict([tmp_path / "RGBA.png", tmp_path / "RGB.png"])
    as_images = model.predict([ink, seen])
    assert as_files[0] == as_files[1] == as_images[0] == as_images[1]
    assert model.predict([ink.convert("RGB")]) != [as_files[0]]


def test_predict_names_an_unreadable_image(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "a")
    (tmp_path / "image.png").write_text("not an image")
    with pytest.raises(DataError, match=r"image\.png: cannot be read as an image"):
        load_model(tmp_path / "model").predict([tmp_path / "image.png"])


def test_a_model_that_segments_gives_class_maps_at_the_images_own_sizes(tmp_path: Path) -> None:
    spec = ModelSpec(
        build_backbone("nano", image_size=28, channels=1, depth=1), {"head": HeadSpec("linear", 3)}, "segmentation"
    )
    torch.manual_seed(0)
    state = MiniViT.from_spec(spec).state_dict()
    Bundle(state, spec, Preprocess((0.5,), (0.5,), 1, (28, 28)), CLASSES).save(tmp_path / "model")
    model = load_model(tmp_path / "model")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 60), dtype=np.uint8))
    wide.save(tmp_path / "wide.png")
    from_image, from_path, turned = model.predict([wide, tmp_path / "wide.png", wide.transpose(Image.ROTATE_90)])
    assert (from_image.shape, from_path.shape, turned.shape) == ((30, 60), (30, 60), (60, 30))
    assert np.array_equal(from_image, from_path)
    finer = {"inference": {"size": 56}}
    Bundle(state, spec, model.preprocess, CLASSES, {}, finer).save(tmp_path / "finer")
    [at_56] = load_model(tmp_path / "finer").predict([wide])
    assert at_56.shape == (30, 60)
    assert not np.array_equal(at_56, from_image), "seen at the size that it was measured at"
    [shares] = model.summarise([wide], 3)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares == {name: pytest.approx((from_image == n).mean()) for n, name in enumerate(CLASSES) if name in shares}


def test_a_model_whose_task_predicts_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model", "a")
    model = load_model(tmp_path / "model")
    monkeypatch.setattr(Classification, "predict", TaskModule.predict)
    with pytest.raises(ModelError, match=r"a model of the task classification predicts nothing about images"):
        model.predict([Image.new("L", (28, 28))])


def test_a_task_that_there_is_not_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model" / "model.json"
    write_model(tmp_path / "model", "a")
    description = json.loads(path.read_text())
    description["spec"]["task"] = "clasification"
    path.write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"the model's task: found 'clasification', .*classification"):
        load_model(tmp_path / "model")


def test_importing_the_package_is_light() -> None:
    program = "import sys, pipeline; assert 'torch' not in sys.modules; assert callable(pipeline.load_model)"
    subprocess.run([sys.executable, "-c", program], check=True)
