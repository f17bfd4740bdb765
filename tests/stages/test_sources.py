from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config.data import PlainConfig
from pipeline.config.load import dump_config, parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import LOSS, Schema
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.clip_bridge import to_clip
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.timm_bridge import to_timm
from pipeline.models.variants import build_spec
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.inputs import VERSION, inputs_digest
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import stage_branches, stage_spec
from pipeline.stages.sources import (
    describe_source,
    import_folder,
    other_normalisation,
    other_tokenizer,
    resolve_source,
)
from pipeline.stages.stage_type import stage_type
from pipeline.stages.types.evaluate.run import EvaluateStageRun
from pipeline.stages.types.export.run import ExportStageRun
from pipeline.stages.types.report import ReportStageRun
from pipeline.stages.types.train.setup import TrainSetup
from pipeline.text.training import train_tokenizer
from pipeline.train.seeds import stage_seed

SPEC = build_spec("nano", image_size=28, channels=1, num_classes=10, depth=1)


def finish(context: RunContext, branch_id: str, accuracy: float | None, step: int = 1) -> Path:
    """Leave a model and a status as a finished stage does; `step` makes weights differ."""
    folder = context.folder.stage(branch_id)
    state = {name: value + step for name, value in MiniViT.from_spec(SPEC).state_dict().items()}
    names = [f"class {label}" for label in range(10)]
    Bundle(state, SPEC, Preprocess((0.5,), (0.5,), 1, (28, 28)), names).save(folder.model)
    measures = {} if accuracy is None else {"loss": 1.0, "accuracy": accuracy}
    schema = CLASSIFICATION.to_dict()
    status = Status(FINISHED, "pretrain", "d", {}, ended=float(step), schema=schema, result={"measures": measures})
    folder.write_status(status)
    return folder.model


def test_a_fan_out_stands_for_its_best_branch(context: RunContext, capsys: pytest.CaptureFixture[str]) -> None:
    finish(context, "pretrain/nano", 0.5)
    best = finish(context, "pretrain/micro", 0.625)
    context.progress = Progress()  # made here, it speaks where this test listens
    assert resolve_source(context, "larger", "pretrain").path == best
    said = capsys.readouterr().err
    assert said == (
        "larger: uses pretrain/micro, the best by validation accuracy (pretrain/nano 0.5000, pretrain/micro 0.6250)\n"
    )


def test_a_task_that_selects_by_its_loss_stands_for_the_branch_with_the_least(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    for branch_id, loss in {"pretrain/nano": 0.25, "pretrain/micro": 0.5}.items():
        finish(context, branch_id, None)
        folder = context.folder.stage(branch_id)
        status = folder.status()
        assert status is not None
        status.schema, status.result = Schema((LOSS,), "loss").to_dict(), {"measures": {"loss": loss}}
        folder.write_status(status)
    context.progress = Progress()
    assert resolve_source(context, "larger", "pretrain").name == "pretrain/nano"
    assert "the best by validation loss (pretrain/nano 0.2500" in capsys.readouterr().err


def test_the_first_of_equals_is_taken(context: RunContext) -> None:
    finish(context, "pretrain/nano", 0.5)
    finish(context, "pretrain/micro", 0.5)
    assert resolve_source(context, "larger", "pretrain").name == "pretrain/nano"


def test_without_validation_there_is_no_best(context: RunContext) -> None:
    finish(context, "pretrain/nano", 0.5)
    finish(context, "pretrain/micro", None)
    with pytest.raises(
        ConfigError, match=r"^stages\.larger: 'pretrain' fans out, but pretrain/micro has no validation"
    ):
        resolve_source(context, "larger", "pretrain")


def test_a_branch_and_a_path_stand_for_themselves(context: RunContext, tmp_path: Path) -> None:
    model = finish(context, "pretrain/nano", None)
    branch = resolve_source(context, "larger", "pretrain/nano")
    assert (branch.name, branch.path) == ("pretrain/nano", model)
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    elsewhere = resolve_source(context, "larger", str(copy))
    assert (elsewhere.path, elsewhere.digest) == (copy, branch.digest)


def test_the_digest_follows_the_weights(context: RunContext) -> None:
    finish(context, "larger", None, step=1)
    before = resolve_source(context, "finer", "larger").digest
    finish(context, "larger", None, step=2)
    assert resolve_source(context, "finer", "larger").digest != before


@pytest.mark.parametrize("change", [{"mean": [0.4]}, {"classes": [*"abcdefghij"]}, {"background": [0, 0, 0]}])
def test_the_digest_follows_what_gives_the_weights_a_meaning(context: RunContext, change: dict[str, Any]) -> None:
    """As where a file that lies beside foreign weights now says another mean; who made them is no content."""
    model = finish(context, "larger", None)
    before = resolve_source(context, "finer", "larger").digest
    described = json.loads((model / "model.json").read_text())
    described["provenance"]["note"] = "copied"
    (model / "model.json").write_text(json.dumps(described))
    assert resolve_source(context, "finer", "larger").digest == before
    for name, value in change.items():
        (described if name in described else described["preprocess"])[name] = value
    (model / "model.json").write_text(json.dumps(described))
    assert resolve_source(context, "finer", "larger").digest != before


def test_a_path_without_a_model_is_refused(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        resolve_source(context, "larger", str(tmp_path / "nowhere"))


def test_foreign_weights_are_imported_once_and_anew_when_the_file_changes(context: RunContext, tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    state = MiniViT.from_spec(SPEC).state_dict()
    save_file(to_timm(state, SPEC), file)
    first = resolve_source(context, "larger", str(file))
    assert first.path.parent == context.folder.path / "imported"
    assert torch.equal(load_bundle(first.path).state["mlp_head.1.weight"], state["mlp_head.1.weight"])
    written = (first.path / "model.safetensors").stat().st_mtime_ns
    assert resolve_source(context, "finer", str(file)) == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == written
    save_file(to_timm({name: value + 1 for name, value in state.items()}, SPEC), file)
    second = resolve_source(context, "larger", str(file))
    assert second.path != first.path
    assert second.digest != first.digest
    (tmp_path / "config.json").write_text("{}")  # may say what the file does not
    assert resolve_source(context, "larger", str(file)).path != second.path


def test_a_path_gives_the_spec_of_its_model_without_its_weights(config: PipelineConfig, tmp_path: Path) -> None:
    stage, folder = config.stages["larger"], tmp_path / "export"
    with pytest.raises(ModelError, match="export: does not exist"):
        describe_source(config, str(folder), stage)
    names = [f"class {label}" for label in range(10)]
    Bundle(MiniViT.from_spec(SPEC).state_dict(), SPEC, Preprocess((0.5,), (0.5,), 1, (28, 28)), names).save(folder)
    described = describe_source(config, str(folder), stage)
    assert (described.state, described.spec, described.classes) == ({}, SPEC, names)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        describe_source(config, str(folder), stage)
    save_file({"mlp_head.1.bias": torch.zeros(10)}, weights)
    with pytest.raises(ModelError, match="lacks the tensor"):
        describe_source(config, str(folder), stage)


def test_foreign_weights_give_a_spec_without_being_downloaded(config: PipelineConfig) -> None:
    stage = config.stages["larger"]
    described = describe_source(config, "timm:vit_tiny_patch16_224", stage)
    spec = described.spec.backbone
    assert (spec.embed_dim, spec.depth, spec.grid, described.spec.num_classes) == (192, 12, (14, 14), 1000)
    assert len(described.classes or []) == 1000
    with pytest.raises(ModelError, match=r"^timm:resnet18: found a ResNet, expected a plain "):
        describe_source(config, "timm:resnet18", stage)


def test_settings_say_what_a_bare_file_does_not(raw: dict[str, Any], tmp_path: Path) -> None:
    clip = SPEC.with_backbone(embed_norm=True, eps=1e-5, activation="gelu", channels=3)
    save_file(to_clip(MiniViT.from_spec(clip).state_dict(), clip), tmp_path / "clip.safetensors")
    raw["stages"]["larger"]["init_from"] = str(tmp_path / "clip.safetensors")
    raw["stages"]["larger"]["model"] |= {"num_heads": 2, "activation": "gelu"}
    config = parse_config(raw, "c")
    source = describe_source(config, str(tmp_path / "clip.safetensors"), config.stages["larger"]).spec
    assert (source.backbone.num_heads, source.backbone.activation) == (2, "gelu")
    larger = next(branch for branch in stage_branches(config) if branch.id == "larger")
    spec = stage_spec(larger, 10, source).backbone
    assert (spec.grid, spec.channels, spec.embed_norm, spec.activation) == ((14, 14), 1, True, "gelu")


def test_weights_imported_by_an_earlier_start_are_described_by_their_bundle(
    context: RunContext, tmp_path: Path
) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(to_timm(MiniViT.from_spec(SPEC).state_dict(), SPEC), file)
    config = context.config
    assert describe_source(config, str(file), config.stages["larger"]).spec.backbone.variant == "timm"
    folder = resolve_source(context, "larger", str(file)).path
    assert import_folder(context.folder, str(file), config.stages["larger"]) == folder
    Bundle(MiniViT.from_spec(SPEC).state_dict(), SPEC, Preprocess((0.5,), (0.5,), 1, (28, 28))).save(folder)
    assert describe_source(config, str(file), config.stages["larger"]).spec == SPEC


def branch_of(context: RunContext, branch_id: str) -> Any:
    return next(branch for branch in stage_branches(context.config) if branch.id == branch_id)


def test_another_normalisation_than_the_sources_is_reported() -> None:
    source = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3, (224, 224))
    other = Preprocess((0.485, 0.456, 0.406), (0.5, 0.5, 0.5), 3, (384, 384))
    told = other_normalisation(source, other)
    assert told is not None
    assert "normalised by mean [0.5, 0.5, 0.5]" in told
    assert "but these by mean [0.485, 0.456, 0.406]" in told
    assert other_normalisation(source, dataclasses.replace(source, image_size=(96, 96))) is None
    assert other_normalisation(source, Preprocess((0.5,), (0.2,), 1, (28, 28))) is None
    told = other_normalisation(source, dataclasses.replace(source, background=(0, 0, 0)))
    assert told is not None
    assert "transparent pixels showing [255, 255, 255], but here they show [0, 0, 0]" in told


def test_another_tokenizer_than_the_sources_is_reported() -> None:
    none = Preprocess((0.5,), (0.5,), 1, (28, 28))
    source, other = (
        dataclasses.replace(none, tokenizer=train_tokenizer([word], size, 8))
        for word, size in (("a", 258), ("bcd", 260))
    )
    told = other_tokenizer(source, other)
    assert told is not None
    assert told.startswith("its source's tokenizer has 258 tokens, but it reads texts with another, of 260, which")
    assert source.tokenizer is not None
    longer = dataclasses.replace(source.tokenizer, length=16)
    assert other_tokenizer(source, dataclasses.replace(source, tokenizer=longer)) is None
    assert other_tokenizer(source, none) is None
    assert other_tokenizer(none, other) is None


def test_an_export_stage_writes_its_formats(context: RunContext) -> None:
    finish(context, "finer", 0.5)
    stage = ExportStageRun(context, branch_of(context, "export"))
    status = Status("running", "export", "d", {})
    result = stage.run(status)
    assert status.init_from == "finer"
    assert load_bundle(result["formats"]["safetensors"]).spec == SPEC
    assert [path.is_dir() for path, _ in stage.artifacts()] == [True]
    assert stage.inputs() == {"version": VERSION, "settings": {"type": "export"}, "model": stage.source.digest}
    run_id = context.tracker.start("export", run_id=None)
    stage.track_inputs(run_id)
    assert context.tracker.client.get_run(run_id).data.params["model"] == "finer"


def test_a_report_stage_writes_the_page_and_depends_on_all_others(context: RunContext) -> None:
    finish(context, "finer", 0.5)
    (context.folder.path / "pipeline.yaml").write_text(dump_config(context.config))
    stage = ReportStageRun(context, branch_of(context, "report"))
    assert stage.inputs() == {"finer": ["d", 1.0]}
    assert Path(stage.run(Status("running", "report", "d", {}))["page"]).is_file()
    finish(context, "finer", 0.5, step=2)
    assert stage.inputs() == {"finer": ["d", 2.0]}


@pytest.fixture
def trained(context_with_shards: RunContext) -> RunContext:
    """A run with data, in which all training stages have finished."""
    for branch_id in ("pretrain/nano", "pretrain/micro", "larger", "finer"):
        finish(context_with_shards, branch_id, 0.5)
    return context_with_shards


def test_an_evaluation_names_every_model_and_its_data(trained: RunContext) -> None:
    stage = EvaluateStageRun(trained, branch_of(trained, "evaluate"))
    assert [source.name for source in stage.sources] == ["pretrain/nano", "finer"]
    assert stage.inputs()["data"]["digest"] == trained.datasets["test"].index.digest
    assert set(stage.inputs()["models"]) == {"pretrain/nano", "finer"}
    result = {"measures": {"finer": {"loss": 2.0, "accuracy": 0.5}}, "bad_samples": {"test": {"bad": 3}}}
    assert stage.metrics(result) == {
        "test/loss/finer": 2.0,
        "test/accuracy/finer": 0.5,
        "test/bad_samples": 3,
    }


def test_an_evaluation_calls_its_data_by_name(trained: RunContext) -> None:
    branch = branch_of(trained, "evaluate")
    trained.datasets["photos"] = trained.datasets["test"]
    named = branch._replace(stage=branch.stage.model_copy(update={"data": "photos"}))
    stage = EvaluateStageRun(trained, named)
    stage.folder.path.mkdir(parents=True)
    line = {"dataset": "photos", "shard": "a.tar", "index": 0, "key": "k", "reason": "torn"}
    (stage.folder.path / "quarantine.rank0-worker0.jsonl").write_text(json.dumps(line) + "\n")
    assert stage._report_bad_samples()["bad"] == 1
    [event] = (stage.folder.path / "events.jsonl").read_text().splitlines()
    assert json.loads(event)["message"].startswith("photos: 1 of 20 samples are bad and were left out")


def test_more_classes_than_the_head_has(trained: RunContext) -> None:
    spec = ModelSpec.classifier(SPEC.backbone, 7)
    preprocess = Preprocess((0.5,), (0.5,), 1, (28, 28))
    folder = trained.folder.stage("finer").model
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(folder)
    with pytest.raises(ConfigError) as caught:
        EvaluateStageRun(trained, branch_of(trained, "evaluate"))
    assert str(caught.value) == (
        "stages.evaluate.data: test has 10 classes, but the head of finer has 7; use data with the classes that it "
        "was trained on, or fine-tune it on these"
    )


def test_an_evaluation_shows_the_background_that_the_model_was_trained_on(trained: RunContext) -> None:
    preprocess = Preprocess((0.5,), (0.5,), 1, (28, 28), (0, 0, 0))
    folder = trained.folder.stage("finer").model
    Bundle(MiniViT.from_spec(SPEC).state_dict(), SPEC, preprocess).save(folder)
    with pytest.raises(ConfigError) as caught:
        EvaluateStageRun(trained, branch_of(trained, "evaluate"))
    assert str(caught.value) == (
        "datasets.test.background: found [255, 255, 255], but finer was trained with transparent pixels showing "
        "[0, 0, 0]; set it to that to evaluate finer"
    )


def test_a_trained_model_keeps_the_background_of_its_data(trained: RunContext, raw: dict[str, Any]) -> None:
    for dataset in raw["datasets"].values():
        dataset["background"] = [0, 0, 0]
    trained.config = parse_config(raw, "c")
    trained.datasets = open_datasets(trained.config)
    assert TrainSetup(trained, branch_of(trained, "larger")).preprocess.background == (0, 0, 0)


def test_a_model_is_evaluated_as_its_validation_data_say_else_its_training_data(
    trained: RunContext, raw: dict[str, Any]
) -> None:
    shorter, padded = {"resize": "shorter", "crop_pct": 0.875}, {"resize": "pad"}
    raw["datasets"]["train"]["eval"] = shorter
    raw["stages"]["larger"]["data"]["val"] = "test"
    for eval_of_val, expected in ((None, PlainConfig(**shorter)), (padded, PlainConfig(**padded))):
        raw["datasets"]["test"]["eval"] = eval_of_val
        trained.config = parse_config(raw, "c")
        trained.datasets = open_datasets(trained.config)
        stage = TrainSetup(trained, branch_of(trained, "larger"))
        assert stage.preprocess.eval == expected
        assert stage.inputs()["preprocess"]["eval"] == expected.model_dump(exclude_defaults=True)


def test_classes_in_another_order_than_the_heads(trained: RunContext) -> None:
    names = [f"class {label}" for label in (1, 0, *range(2, 10))]
    Bundle(MiniViT.from_spec(SPEC).state_dict(), SPEC, Preprocess((0.5,), (0.5,), 1, (28, 28)), names).save(
        trained.folder.stage("finer").model
    )
    with pytest.raises(ConfigError, match=r"^stages\.evaluate\.data: class 0 of test is 'class 0', but that of finer"):
        EvaluateStageRun(trained, branch_of(trained, "evaluate"))


@pytest.mark.parametrize(
    ("path", "value", "matters"),
    [
        ("optimizer.lr", 0.5, True),
        ("global_batch_size", 32, True),
        ("data.window", 8, True),
        ("duration", "7 steps", True),
        ("engine.precision", "fp32", True),
        ("engine.zero_stage", 3, False),
        ("data.loader_workers", 0, False),
        ("micro_batch_size", 4, False),
        ("checkpoint.keep_last", 5, False),
        ("log_every", 3, False),
        ("resources", {"workers": 1}, False),
    ],
)
def test_only_settings_that_change_the_result_are_inputs(
    trained: RunContext, raw: dict[str, Any], path: str, value: Any, matters: bool
) -> None:
    before = TrainSetup(trained, branch_of(trained, "larger")).inputs()
    section = raw["stages"]["larger"]
    *parents, key = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    trained.config = parse_config(raw, "c")
    after = TrainSetup(trained, branch_of(trained, "larger")).inputs()
    assert (before != after) == matters


def inputs(context: RunContext, raw: dict[str, Any], branch_id: str) -> str:
    """The digest of a branch's inputs under a changed config."""
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    branch = branch_of(context, branch_id)
    return inputs_digest(stage_type(branch.stage).start(context, branch).inputs())


@pytest.mark.parametrize(("key", "value"), [("image_key", "other"), ("targets", {"class_id": "other"})])
def test_other_images_and_other_labels_are_other_inputs(
    trained: RunContext, raw: dict[str, Any], key: str, value: Any
) -> None:
    """Of what a stage trains on, what it validates on, and what is evaluated."""
    for settings in raw["datasets"].values():
        settings["classes"] = [f"class {label}" for label in range(10)]
    before = {branch_id: inputs(trained, raw, branch_id) for branch_id in ("pretrain/nano", "larger", "evaluate")}
    raw["datasets"]["test"][key] = value
    after = {branch_id: inputs(trained, raw, branch_id) for branch_id in before}
    assert [branch_id for branch_id in before if before[branch_id] != after[branch_id]] == ["pretrain/nano", "evaluate"]
    raw["datasets"]["train"][key] = value
    assert inputs(trained, raw, "larger") != before["larger"]


def test_shards_that_moved_are_the_same_inputs(trained: RunContext, raw: dict[str, Any], tmp_path: Path) -> None:
    before = {branch_id: inputs(trained, raw, branch_id) for branch_id in ("larger", "evaluate")}
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    for name in ("train", "test"):
        raw["datasets"][name]["shards"] = f"elsewhere/{name}-*.tar"
    assert {branch_id: inputs(trained, raw, branch_id) for branch_id in before} == before


def test_classes_and_what_a_stage_starts_from_are_inputs(trained: RunContext, raw: dict[str, Any]) -> None:
    before = inputs(trained, raw, "larger")
    raw["datasets"]["train"]["classes"] = [f"class {label}" for label in range(10)]
    assert inputs(trained, raw, "larger") == before  # as the index has them
    raw["datasets"]["train"]["classes"][0] = "renamed"
    assert inputs(trained, raw, "larger") != before
    del raw["datasets"]["train"]["classes"]
    finish(trained, "pretrain/micro", 0.75, step=2)
    assert inputs(trained, raw, "larger") != before


def test_stages_draw_independently_and_repeatably() -> None:
    seeds = {stage_seed(seed, stage) for seed in range(5) for stage in ("pretrain/nano", "pretrain/micro", "larger")}
    assert len(seeds) == 15
    assert stage_seed(3, "larger") == stage_seed(3, "larger")
