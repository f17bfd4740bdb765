"""Stages that start from foreign weights, through `minivit run`: import, surgery, training, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline import load_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NAME = "vit_tiny_patch16_224"
TRAINED = ("named", "file")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder of the hub's client with random weights of `NAME` in its cache, as if downloaded."""
    home = tmp_path_factory.mktemp("hub")
    model = timm.create_model(NAME)
    repository = home / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return home


@pytest.fixture(scope="module")
def raw(kit: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One stage starts from a timm name and overrides the image size; another from a bare file with another shape."""
    theirs = timm.create_model(NAME, img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=7)
    file = tmp_path_factory.mktemp("theirs") / "theirs.safetensors"
    save_file(theirs.state_dict(), file)
    short = {"type": "finetune", "duration": "4 steps", "optimizer": {"lr": 1.0e-4}}
    named = kit.pretrain(**short, init_from=f"timm:{NAME}")
    named["model"] = {"image_size": kit.side, "patch_size": 4, "channels": 1, "registers": 2}
    bare = kit.pretrain(**short, init_from=str(file))
    bare["model"] = {"variant": "nano", "depth": 2, "image_size": kit.side, "patch_size": 4, "channels": 1}
    bare["model"]["num_heads"] = 2
    stages = {
        "named": named,
        "file": bare,
        "evaluate": {"type": "evaluate", "models": list(TRAINED), "data": "test", "batch_size": 16},
        "export": {"type": "export", "model": "named", "formats": ["timm"]},
    }
    return kit.config(shards, "foreign", stages)


@pytest.fixture(scope="module")
def place(joined: Any, hub: Path) -> Any:
    joined.environment |= {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    return joined


@pytest.fixture(scope="module")
def first_run(place: Any, raw: dict[str, Any]) -> Any:
    done = place.minivit("run", place.write(raw), timeout_s=560)
    assert done.code == 0, done.stderr
    return done


def test_plan_tells_the_surgeries_ahead(place: Any, raw: dict[str, Any]) -> None:
    done = place.minivit("plan", place.write(raw, "plan.yaml"), "--json")
    assert done.code == 0, done.stderr
    models = {s["id"]: s["training"]["models"] for s in json.loads(done.stdout)["stages"] if s["training"]}
    [named], [bare] = models["named"], models["file"]
    assert named["starts_from"] == f"timm:{NAME}"
    assert {"patch kernel 16x16 -> 4x4", "channels 3 -> 1", "head classes 1000 -> 4"} <= set(named["surgeries"])
    assert {"patch kernel 8x8 -> 4x4", "channels 3 -> 1", "head classes 7 -> 4"} <= set(bare["surgeries"])


def test_stages_start_from_them_resized_to_their_own_shape(place: Any, first_run: Any) -> None:
    for stage_id, depth in (("named", 12), ("file", 2)):
        folder = place.stage("foreign", stage_id)
        assert place.status("foreign", stage_id)["state"] == "finished"
        counts = json.loads((folder / "surgery.json").read_text())["counts"]
        assert counts["copied"] >= 12 * depth
        assert counts["resized"] >= 1
        spec = json.loads((folder / "init" / "model.json").read_text())["spec"]
        backbone, heads = spec["backbone"], spec["heads"]
        assert (backbone["depth"], backbone["grid"], backbone["channels"]) == (depth, [4, 4], 1)
        assert heads == {"mlp_head": {"kind": "classifier", "outputs": 4, "options": {}}}
    theirs = timm.create_model(NAME, pretrained=False).state_dict()
    start = load_model(place.stage("foreign", "named") / "init").state_dict()
    assert start["transformer.layers.3.linear1.weight"].shape == theirs["blocks.3.mlp.fc1.weight"].shape
    imported = list((place.folder / "runs" / "foreign" / "imported").iterdir())
    assert len(imported) == 2


def test_the_start_holds_their_weights(place: Any, first_run: Any, raw: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    theirs = load_file(raw["stages"]["file"]["init_from"])
    start = load_model(place.stage("foreign", "file") / "init").state_dict()
    assert torch.equal(start["transformer.layers.1.linear2.weight"], theirs["blocks.1.mlp.fc2.weight"])
    trained = load_model(place.stage("foreign", "file")).state_dict()
    assert not torch.equal(trained["transformer.layers.1.linear2.weight"], theirs["blocks.1.mlp.fc2.weight"])


def test_the_export_loads_in_timm_strictly(place: Any, first_run: Any, kit: Any) -> None:
    folder = place.stage("foreign", "export") / "export" / "timm"
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], checkpoint_path=str(folder / "model.safetensors"), **config["model_args"]
    ).eval()
    images = torch.randn(2, 1, kit.side, kit.side)
    ours = load_model(place.stage("foreign", "named"))
    torch.testing.assert_close(model(images), ours(images), atol=1e-5, rtol=1e-5)


def test_a_second_run_skips_everything_without_the_weights(place: Any, first_run: Any) -> None:
    place.environment["HF_HOME"] = str(place.folder / "nowhere")
    done = place.minivit("run", "pipeline.yaml")
    assert done.code == 0, done.stderr
    assert place.status("foreign", "named")["attempts"] == 1


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (f"timm:{NAME}", f"timm:{NAME}: unavailable ("),
        ("theirs.pth", "theirs.pth: not a safetensors file, and pickles can run code"),
        ("theirs.safetensors", "theirs.safetensors: cannot be read"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    place: Any, raw: dict[str, Any], kit: Any, reference: str, sentence: str
) -> None:
    stage = raw["stages"]["named"] | {"init_from": reference}
    place.environment["HF_HOME"] = str(place.folder / "nowhere")
    name = place.write({**raw, "name": "bad", "stages": {"named": stage}}, "bad.yaml")
    done = place.minivit("run", name)
    assert sentence in done.error
