from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.task import task_class
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError
from pipeline.models import surgery
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, ViTSpec, Windows
from pipeline.models.variants import build_spec
from pipeline.stages import resolve
from pipeline.stages.resolve import (
    Branch,
    check_channels,
    dependencies,
    describe_surgery,
    on_workers,
    reference_ids,
    stage_branches,
    stage_image_sizes,
    stage_spec,
)
from pipeline.tasks.classification import Task as Classification
from pipeline.tasks.task import task_of

NANO = build_spec("nano", image_size=28, channels=1, num_classes=10)


def branch(config: PipelineConfig, branch_id: str) -> Branch:
    return next(b for b in stage_branches(config) if b.id == branch_id)


def test_branches_come_after_what_they_need(config: PipelineConfig) -> None:
    branches = stage_branches(config)
    assert [b.id for b in branches] == [
        "pretrain/nano",
        "pretrain/micro",
        "larger",
        "finer",
        "evaluate",
        "export",
        "report",
    ]
    assert branches[0] == Branch("pretrain/nano", "pretrain", "nano", config.stages["pretrain"])
    assert branches[2].variant is None


def test_exports_and_reports_ask_for_no_workers(config: PipelineConfig) -> None:
    assert list(on_workers(config)) == ["pretrain", "larger", "finer", "evaluate"]


@pytest.mark.parametrize(
    ("branch_id", "needs"),
    [
        ("pretrain/nano", []),
        ("larger", ["pretrain/nano", "pretrain/micro"]),
        ("finer", ["larger"]),
        ("evaluate", ["pretrain/nano", "finer"]),
        ("export", ["finer"]),
        ("report", ["pretrain/nano", "pretrain/micro", "larger", "finer", "evaluate", "export"]),
    ],
)
def test_dependencies(config: PipelineConfig, branch_id: str, needs: list[str]) -> None:
    assert dependencies(config, branch_id) == needs


def test_a_list_of_one_variant_is_a_branch_and_a_name_is_not(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["model"]["variant"] = ["nano"]
    assert reference_ids(parse_config(raw, "c"), "pretrain") == ["pretrain/nano"]
    raw["stages"]["pretrain"]["model"]["variant"] = "nano"
    config = parse_config(raw, "c")
    assert reference_ids(config, "pretrain") == reference_ids(config, "pretrain/nano") == ["pretrain"]


def test_spec_of_a_variant(config: PipelineConfig) -> None:
    assert stage_spec(branch(config, "pretrain/nano"), 10) == NANO


def test_without_a_variant_the_source_decides(config: PipelineConfig) -> None:
    larger = stage_spec(branch(config, "larger"), 10, NANO)
    backbone = larger.backbone
    assert (backbone.variant, backbone.grid, backbone.patch) == ("nano", (14, 14), (4, 4))
    assert backbone.embed_dim == NANO.backbone.embed_dim
    finer = stage_spec(branch(config, "finer"), 7, larger)
    assert (finer.backbone.grid, finer.backbone.patch, finer.num_classes) == ((14, 14), (2, 2), 7)


class Masked(Classification):
    """A task with a head of its own that needs the mask token."""

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return {"scores": HeadSpec("classifier", 5)}

    def backbone_fields(self) -> dict[str, Any]:
        return {"mask_token": True}


@pytest.mark.parametrize("source", [None, NANO])
def test_heads_and_tokens_are_those_that_the_task_needs(config: PipelineConfig, source: ModelSpec | None) -> None:
    plain = branch(config, "larger" if source else "pretrain/nano")
    assert isinstance(plain.stage, TrainStage)
    spec = stage_spec(plain._replace(stage=plain.stage.model_copy(update={"task": Masked()})), 0, source)
    assert spec.heads == {"scores": HeadSpec("classifier", 5)}
    assert spec.backbone.tokens.mask
    model = plain.stage.model.model_copy(update={"mask_token": False})
    against = plain._replace(stage=plain.stage.model_copy(update={"task": Masked(), "model": model}))
    with pytest.raises(ConfigError) as caught:
        stage_spec(against, 0, source)
    assert str(caught.value) == (
        f"stages.{plain.stage_name}.model.mask_token: found false, but the task classification needs true; leave it out"
    )


def test_a_stage_goes_on_with_the_text_tower_of_its_source(raw: dict[str, Any]) -> None:
    def spec(source: ModelSpec, **task: Any) -> ModelSpec:
        raw["stages"]["larger"]["task"] = {"type": "clip", **task}
        return stage_spec(branch(parse_config(raw, "c"), "larger"), 0, source)

    text = {"length": 12, "dim": 32, "depth": 1, "num_heads": 2}
    settings = {"embedding_dim": 24, "text": text, "tokenizer": {"size": 300}}
    source = spec(NANO, **settings)
    assert source.heads["text_tower"] == HeadSpec("text_tower", 24, {"tokens": 300, **text})
    assert spec(source).heads == spec(source, **settings).heads == source.heads
    longer = spec(source, text={"length": 20}, embedding_dim=16).heads["text_tower"]
    assert longer == HeadSpec("text_tower", 16, {"tokens": 300, **text, "length": 20})
    assert spec(source, text={"dim": 192}).heads["text_tower"].options["num_heads"] == 3
    with pytest.raises(ConfigError) as caught:
        spec(source, tokenizer={"size": 301})
    assert str(caught.value).startswith(
        "stages.larger.task.tokenizer.size: found 301, but the model that the stage starts from has 300 tokens; leave"
    )


def test_settings_of_the_stage_go_before_the_source(raw: dict[str, Any]) -> None:
    raw["stages"]["larger"]["model"] |= {"pool": "avg", "class_token": False, "registers": 2, "drop_path": 0.1}
    spec = stage_spec(branch(parse_config(raw, "c"), "larger"), 10, NANO).backbone
    assert (spec.pool, spec.tokens.cls, spec.tokens.registers, spec.drop_path) == ("avg", False, 2, 0.1)


def test_windows_are_the_sources_until_a_stage_has_its_own_or_none(raw: dict[str, Any]) -> None:
    raw["stages"]["larger"]["model"] |= {"windows": {"size": 7}}
    larger = stage_spec(branch(parse_config(raw, "c"), "larger"), 10, NANO)
    assert larger.backbone.windows == Windows(7, global_every=3)
    assert stage_spec(branch(parse_config(raw, "c"), "finer"), 10, larger).backbone.windows == Windows(7, 3)
    raw["stages"]["finer"]["model"] |= {"windows": "none"}
    assert stage_spec(branch(parse_config(raw, "c"), "finer"), 10, larger).backbone.windows is None


@pytest.mark.parametrize(
    ("stage", "settings", "sentence"),
    [
        (
            "pretrain",
            {"variant": "nanu"},
            "stages.pretrain.model.variant: 'nanu' is not a variant; did you mean 'nano'?",
        ),
        (
            "pretrain",
            {"num_heads": 5},
            "stages.pretrain.model.num_heads: 5 heads do not divide embed_dim = 64; use 4 ",
        ),
        (
            "pretrain",
            {"image_size": 30},
            "stages.pretrain.model.image_size: the height 30 is not a multiple of the patch",
        ),
        (
            "pretrain",
            {"image_size": [28, 30]},
            "stages.pretrain.model.image_size: the width 30 is not a multiple of the ",
        ),
        ("pretrain", {"class_token": False, "pool": "cls"}, "stages.pretrain.model.pool: 'cls' needs a class token"),
        ("larger", {"image_size": 57}, "stages.larger.model.image_size: the height 57 is not a multiple of the patch"),
        (
            "larger",
            {"windows": {"size": 7}, "dropout": 0.1},
            "stages.larger.model.windows: attention in windows does not support dropout, found 0.1; set dropout: 0",
        ),
        ("larger", {"num_heads": 3}, "stages.larger.model.num_heads: 3 heads do not divide embed_dim = 64"),
        ("larger", {"depth": 5}, "stages.larger.init_from: 'pretrain' may be a nano with depth = 4, but this stage's "),
        ("larger", {"variant": "micro"}, "stages.larger.init_from: 'pretrain' may be a nano with embed_dim = 64, but "),
    ],
)
def test_impossible_models(raw: dict[str, Any], stage: str, settings: dict[str, Any], sentence: str) -> None:
    raw["stages"]["evaluate"]["models"] = ["pretrain"]
    raw["stages"][stage]["model"] |= settings
    config = parse_config(raw, "c")
    found = next(b for b in stage_branches(config) if b.stage_name == stage)
    with pytest.raises(ConfigError) as caught:
        stage_spec(found, 10, NANO if stage == "larger" else None)
    assert str(caught.value).startswith(sentence)


def test_every_size_must_fit_the_patch(raw: dict[str, Any]) -> None:
    raw["stages"]["finer"]["resolution"]["sizes"] = [20, 27]
    with pytest.raises(ConfigError) as caught:
        stage_spec(branch(parse_config(raw, "c"), "finer"), 10, NANO)
    assert str(caught.value).startswith("stages.finer.resolution.sizes: the height 27 is not a multiple of the patch ")
    assert "use 26 or 28" in str(caught.value)


def test_image_sizes_keep_the_models_proportion(raw: dict[str, Any]) -> None:
    raw["stages"]["finer"]["model"]["image_size"] = [28, 56]
    stage = parse_config(raw, "c").stages["finer"]
    assert stage_image_sizes(stage) == [(28, 56), (20, 40), (36, 72)]


def test_normalisation_must_match_the_channels(raw: dict[str, Any]) -> None:
    raw["stages"]["larger"]["model"]["channels"] = 3
    with pytest.raises(ConfigError) as caught:
        check_channels(parse_config(raw, "c"), "larger")
    assert str(caught.value).startswith("datasets.train.mean: found 1 values, but stages.larger.model.channels is 3;")


@pytest.mark.parametrize("other", ["sketches", "val"])
def test_all_data_of_a_stage_are_normalised_alike(raw: dict[str, Any], other: str) -> None:
    train = raw["datasets"]["train"]
    raw["datasets"] |= {"sketches": dict(train), "val": dict(train)}
    raw["stages"]["larger"]["data"] |= {"val": "val", "mixture": {"train": {}, "sketches": {}}}
    raw["stages"]["larger"]["data"].pop("train", None)
    check_channels(parse_config(raw, "c"), "larger")
    raw["datasets"][other]["mean"] = [0.123]
    with pytest.raises(ConfigError) as caught:
        check_channels(parse_config(raw, "c"), "larger")
    assert str(caught.value) == (
        f"datasets.{other}.mean: mean and std differ from those of train, but stages.larger reads both and its model "
        "normalises all images alike; give both the same"
    )


@pytest.mark.parametrize("other", ["sketches", "val"])
def test_all_data_of_a_stage_show_one_background(raw: dict[str, Any], other: str) -> None:
    train = raw["datasets"]["train"]
    raw["datasets"] |= {"sketches": dict(train), "val": dict(train)}
    raw["stages"]["larger"]["data"] |= {"val": "val", "mixture": {"train": {}, "sketches": {}}}
    raw["stages"]["larger"]["data"].pop("train", None)
    check_channels(parse_config(raw, "c"), "larger")
    raw["datasets"][other]["background"] = [0, 0, 0]
    with pytest.raises(ConfigError) as caught:
        check_channels(parse_config(raw, "c"), "larger")
    assert str(caught.value) == (
        f"datasets.{other}.background: found [0, 0, 0], but stages.larger also reads train, whose transparent pixels "
        "show [255, 255, 255]; give both the same"
    )


def test_the_plan_refuses_what_surgery_refuses() -> None:
    assert resolve.FIXED_FIELDS == surgery.FIXED_FIELDS


def test_surgeries_name_what_changes() -> None:
    settings = {"registers": 4, "pool": "avg", "windows": Windows(7)}
    target = build_spec("nano", image_size=56, patch_size=2, channels=3, num_classes=5, **settings)
    assert describe_surgery(NANO, NANO) == []
    assert describe_surgery(NANO, target) == [
        "positions 7x7 -> 28x28",
        "patch kernel 4x4 -> 2x2",
        "channels 1 -> 3",
        "head classes 10 -> 5",
        "windows none -> of 7 with one layer in 3 global",
        "pooling cls -> avg",
        "tokens cls -> cls+4 registers",
    ]


def test_a_head_of_another_shape_is_a_new_one() -> None:
    def captions(**settings: Any) -> ModelSpec:
        return task_of(task_class("clip")(**settings)).model_spec(NANO.backbone, 0)

    assert describe_surgery(captions(), captions(max_scale=50)) == []
    assert describe_surgery(captions(), captions(text={"length": 16})) == [
        "head text_tower (text_tower) dropped",
        "head text_tower (text_tower) new",
    ]


def test_positions_that_are_computed_are_said_to_be() -> None:
    small = build_spec("nano", image_size=28, channels=1, num_classes=10, positions="sincos")
    assert describe_surgery(small, small.with_backbone(grid=(14, 14))) == ["sine-cosine positions 7x7 -> 14x14"]
