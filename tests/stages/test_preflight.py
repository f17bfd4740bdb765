from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.errors import ConfigError, TrackingError
from pipeline.export import FORMATS
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.stages import sources
from pipeline.stages.context import find_datasets
from pipeline.stages.findings import Findings
from pipeline.stages.planner import plan
from pipeline.stages.preflight import preflight
from pipeline.stages.run import run_pipeline
from pipeline.stages.sources import describe_source
from pipeline.stages.types.export import ExportStage

CLASSES = [f"class {number}" for number in range(10)]
NANO = build_spec("nano", image_size=28, channels=1, num_classes=10)


@pytest.fixture(autouse=True)
def with_data(make_shards: Callable[..., None], raw: dict[str, Any]) -> None:
    make_shards("train", 100, 30, CLASSES)
    make_shards("test", 21, 30, CLASSES)
    for settings in raw["datasets"].values():
        del settings["make"]


def change(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[key] = value


def findings(raw: dict[str, Any]) -> Findings:
    config = parse_config(raw, "c")
    return preflight(config, find_datasets(config)[0])


def export(folder: str, **changes: Any) -> str:
    spec = build_spec("nano", **{"image_size": 28, "channels": 1, "num_classes": 10} | changes)
    preprocess = Preprocess(
        (0.5,) * spec.backbone.channels, (0.5,) * spec.backbone.channels, spec.backbone.channels, (28, 28)
    )
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(folder)
    return f"./{folder}"


def test_a_sound_pipeline_has_no_faults(raw: dict[str, Any]) -> None:
    found = findings(raw)
    assert (found.faults, found.warnings) == ([], [])
    assert found.models["finer"].keys() == {"larger (from pretrain/nano)", "larger (from pretrain/micro)"}
    found.refuse()


PROBE = {"type": "probe", "models": ["finer", "random"], "data": {"train": "train", "test": "test"}}


def test_only_a_probe_that_fits_something_warns_of_the_same_data_twice(raw: dict[str, Any]) -> None:
    both = PROBE | {"data": {"train": "test", "test": "test"}}
    change(raw, "stages.probe", both | {"methods": {"retrieval": {}}})
    assert findings(raw).warnings == []
    change(raw, "stages.probe", both | {"methods": {"retrieval": {}, "knn": {"k": 1}}})
    [warning] = findings(raw).warnings
    assert "stages.probe trains on it and is evaluated on it" in warning


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"stages.export.formats": ["safetensors", "onix"]},
        r"stages\.export\.formats\[1\]: 'onix' is not an export format; did you mean 'onnx'\?",
    ),
    (
        {"stages.export.formats": ["clip"]},
        r"stages\.export\.formats\[0\]: clip cannot hold finer: model\.embed_norm: found False.*; "
        r"safetensors, timm, hf, onnx and torch-export can hold this model$",
    ),
    (
        {
            "stages.export.formats": ["hf"],
            "datasets.test.eval": {"resize": "pad"},
            "datasets.train.eval": {"resize": "pad"},
        },
        r"stages\.export\.formats\[0\]: hf cannot hold finer: eval\.resize: found pad, but transformers' image ",
    ),
    (
        {"stages.export.register_as": {"name": "shoes"}, "stages.export.weights": "last"},
        r"stages\.export\.register_as: only the finished model can be registered; leave stages\.export\.weights out",
    ),
    (
        {"stages.export.weights": "soup-9"},
        r"stages\.export\.weights: soup-9 needs 9 checkpoints, but stages\.finer\.checkpoint\.keep_last is 2; set",
    ),
    (
        {
            "stages.export.weights": "soup-9",
            "stages.finer.checkpoint": {"keep_last": 9},
            "stages.finer.duration": "2 epochs",
        },
        r"stages\.export\.weights: soup-9 needs 9 checkpoints, but stages\.finer saves 2 in its \d+ steps; set stages",
    ),
    (
        {"stages.export.weights": "step-8", "stages.finer.duration": "7 steps"},
        r"stages\.export\.weights: found step-8, but stages\.finer ends with step 7; name an earlier one",
    ),
    (
        {"stages.export.weights": "best", "stages.finer.checkpoint": {}},
        r"stages\.export\.weights: found best, but no measure to choose it by; set stages\.finer\.checkpoint\.ke",
    ),
    (
        {"stages.export.formats": ["timm"], "stages.finer.model.eps": 1e-5},
        r"stages\.export\.formats\[0\]: timm cannot hold finer: model\.eps: found 1e-05, but timm's ViT has",
    ),
    ({"stages.finer.data.val": "odd"}, r"stages\.finer\.data\.val: its class 'emu' is not among the 10 classes"),
    (
        {"stages.finer.data.train": None, "stages.finer.data.mixture": {"train": {"label_map": {"klass 1": "x"}}}},
        r"stages\.finer\.data\.mixture\.train\.label_map: 'klass 1' is not a class of train; did you mean 'class 1'\?",
    ),
    ({"stages.evaluate.data": "turned"}, r"stages\.evaluate\.data: class 0 of turned is 'class 9', but that of .* is "),
    ({"stages.evaluate.data": "few"}, r"stages\.evaluate\.data: few has 11 classes, but the head of finer has 10;"),
    (
        {"stages.evaluate.data": "dark"},
        r"datasets\.dark\.background: found \[0, 0, 0\], but pretrain/nano was trained ",
    ),
    (
        {"stages.finer.data.lanes": 128},
        r"stages\.finer\.data\.lanes: 128 lanes need .* and \w+ has 100; set data\.lanes to",
    ),
    (
        {"stages.finer.data.exclude": "gone.jsonl"},
        r"stages\.finer\.data\.exclude: there is no quarantine manifest gone\.jsonl;",
    ),
    (
        {"stages.finer.data.exclude": "runs/quick/stages/finer/quarantine.jsonl"},
        r"stages\.finer\.data\.exclude: runs/quick/stages/finer/quarantine\.jsonl is in the stage's own folder",
    ),
    (
        {"stages.finer.data.exclude": "torn.jsonl"},
        r"stages\.finer\.data\.exclude: torn\.jsonl:1 is not a line of a quarantine manifest",
    ),
    ({"stages.finer.resolution.sizes": [20, 27]}, r"stages\.finer\.resolution\.sizes: the height 27 is not a multiple"),
    (
        {"stages.pretrain.model.variant": ["nano", "mikro"]},
        r"stages\.pretrain\.model\.variant: .*mikro",
    ),
    (
        {"stages.finer.model.variant": "micro"},
        r"stages\.finer\.init_from: 'larger' may be a nano with embed_dim = .*, but this stage's model has",
    ),
    ({"stages.finer.model.channels": 3}, r"datasets\.train\.mean: found 1 values, but stages\.finer\.model\.channels"),
    ({"stages.larger.init_from": "./gone"}, r"stages\.larger\.init_from: gone: does not exist;"),
    (
        {"stages.larger.init_from": "./gone.safetensors"},
        r"stages\.larger\.init_from: gone\.safetensors: cannot be read",
    ),
    ({"stages.evaluate.models": ["finer", "./gone"]}, r"stages\.evaluate\.models\[1\]: gone: does not exist;"),
    ({"stages.export.model": "./gone"}, r"stages\.export\.model: gone: does not exist;"),
    (
        {"stages.larger.checkpoint.keep_best": "val/accuracy"},
        r"stages\.larger\.checkpoint\.keep_best: val/accuracy is measured on validation data, but there is none;",
    ),
    (
        {"stages.larger.checkpoint.storage": "nowhere://bucket"},
        r"stages\.larger\.checkpoint\.storage: nowhere://bucket: fsspec cannot open 'nowhere:' URLs here",
    ),
    (
        {"stages.larger.checkpoint.storage": "torn.jsonl/checkpoints"},
        r"stages\.larger\.checkpoint\.storage: torn\.jsonl/checkpoints cannot be written \(.*/torn\.jsonl is not ",
    ),
    (
        {"stages.probe": PROBE | {"data": {"train": "train", "test": "odd"}}},
        r"stages\.probe\.data\.test: class 'emu' of odd is not among the 10 classes of train; did you mean|allowed",
    ),
    (
        {"stages.probe": PROBE | {"methods": {"knn": {"k": 101}}}},
        r"stages\.probe\.methods\.knn\.k: found 101, but the training data have 100 good samples; use at most 100",
    ),
    (
        {"stages.probe": PROBE | {"features": "cls"}, "stages.pretrain.model.class_token": False},
        r"stages\.probe\.features: found cls, but finer has no class token; use patches or both",
    ),
    ({"stages.probe": PROBE | {"models": ["finer", "./gone"]}}, r"stages\.probe\.models\[1\]: gone: does not exist;"),
]


@pytest.mark.parametrize(("changes", "sentence"), FAULTS, ids=[next(iter(changes)) for changes, _ in FAULTS])
def test_what_a_later_stage_would_run_into_is_refused_before_anything_starts(
    raw: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    """`plan` and `run` give the same errors; a refused run leaves no folder and no MLflow store."""
    raw["datasets"]["odd"] = raw["datasets"]["test"] | {"classes": ["emu", *CLASSES[1:]]}
    raw["datasets"]["turned"] = raw["datasets"]["test"] | {"classes": CLASSES[::-1]}
    raw["datasets"]["dark"] = raw["datasets"]["test"] | {"background": [0, 0, 0]}
    raw["datasets"]["few"] = raw["datasets"]["test"] | {"classes": [*CLASSES, "one more"]}
    Path("torn.jsonl").write_text('{"shard": 1}\n')
    for path, value in changes.items():
        change(raw, path, value)
    config = parse_config(raw, "c")
    with pytest.raises(ConfigError, match=f"(?m)^{sentence}") as planned:
        plan(config)
    with pytest.raises(ConfigError) as ran:
        run_pipeline(config)
    assert str(ran.value) == str(planned.value)
    assert not Path("runs").exists()


def test_all_faults_are_reported_at_once_a_sentence_each(raw: dict[str, Any]) -> None:
    change(raw, "stages.export.formats", ["onix", "pickle"])
    change(raw, "stages.finer.data.lanes", 128)
    change(raw, "stages.pretrain.resolution", {"mode": "random", "sizes": [27]})  # a fault of both branches
    with pytest.raises(ConfigError) as caught:
        findings(raw).refuse()
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        "stages.pretrain.resolution.sizes",
        "stages.finer.data.lanes",
        "stages.export.formats[0]",
        "stages.export.formats[1]",
    ]


def test_a_missing_package_is_named_with_its_extra(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(packages=("not_installed_anywhere",)))
    change(raw, "stages.export.formats", ["onnx"])
    [fault] = findings(raw).faults
    assert str(fault) == (
        "stages.export.formats[0]: onnx needs the package not_installed_anywhere; run `pip install "
        "'minivit-pipeline[onnx]'`"
    )


def test_an_opset_that_the_installed_runtime_lacks_is_refused_before_anything_trains(raw: dict[str, Any]) -> None:
    change(raw, "stages.export.formats", ["safetensors", "onnx"])
    config = parse_config(raw, "c")
    stage = config.stages["export"]
    assert isinstance(stage, ExportStage)
    graph = stage.graph.model_copy(update={"opset": 99})  # later than any that a config may ask for
    config = config.model_copy(update={"stages": config.stages | {"export": stage.model_copy(update={"graph": graph})}})
    [fault] = preflight(config, find_datasets(config)[0]).faults
    assert re.fullmatch(
        r"stages\.export\.formats\[1\]: graph\.opset: onnxruntime \S+ does not support opset 99; "
        r"set graph\.opset to an older one, or install a newer onnxruntime",
        str(fault),
    )


def test_exports_are_checked_against_what_starts_from_them(raw: dict[str, Any]) -> None:
    change(raw, "stages.larger.init_from", export("narrow", embed_dim=32, num_heads=2))
    change(raw, "stages.larger.model.variant", "nano")
    change(raw, "stages.evaluate.models", [export("seven", num_classes=7)])
    faults = list(map(str, findings(raw).faults))
    assert faults[0].startswith("stages.larger.init_from: './narrow' may be a nano with embed_dim = 32, but this ")
    assert faults[1].startswith("stages.evaluate.data: test has 10 classes, but the head of ./seven has 7;")
    assert len(faults) == 2


def test_missing_data_leaves_what_the_config_says_to_be_checked(raw: dict[str, Any]) -> None:
    """The classes of data that is still to be made may be named in the config."""
    for name in ("train", "test"):
        raw["datasets"][name] |= {"shards": f"later/{name}", "make": "fashion-mnist"}
    assert findings(raw).faults == []
    raw["datasets"]["train"]["classes"] = CLASSES
    raw["datasets"]["test"]["classes"] = ["emu", *CLASSES[:-1]]
    faults = "\n".join(map(str, findings(raw).faults))
    assert "stages.pretrain.data.val: its class 'emu' is not among the 10 classes" in faults
    assert "stages.evaluate.data: class 0 of test is 'emu', but that of finer is 'class 0'" in faults


def test_the_branches_of_a_stage_describe_its_source_once(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign weights are read whole for it."""
    change(raw, "stages.pretrain.init_from", export("seven", num_classes=7))
    described: list[str] = []

    def describe(config: PipelineConfig, reference: str, stage: StageConfig) -> Bundle:
        described.append(reference)
        return describe_source(config, reference, stage)

    monkeypatch.setattr(sources, "describe_source", describe)
    assert findings(raw).models.keys() >= {"pretrain/nano", "pretrain/micro"}
    assert described == ["./seven"]


def test_shards_that_train_and_judge_are_reported(raw: dict[str, Any]) -> None:
    raw["datasets"]["wide"] = raw["datasets"]["test"] | {"shards": "data/t*-000000.tar"}
    change(raw, "stages.pretrain.data.val", "train")
    change(raw, "stages.evaluate.data", "wide")
    same, shared = findings(raw).warnings
    assert same.startswith("datasets.train: stages.pretrain trains on it and is evaluated on it")
    assert shared.startswith(
        "datasets.wide: 1 of 2 shards (train-000000.tar) are also in datasets.train, and stages.ev"
    )
    assert plan(parse_config(raw, "c")).notes[:2] == [same, shared]


def test_an_evaluation_is_held_against_all_that_its_model_has_seen(raw: dict[str, Any]) -> None:
    """`finer` itself trains on other data than the stages it starts from."""
    raw["datasets"]["other"] = raw["datasets"]["train"] | {"shards": "data/train-000003.tar"}
    raw["datasets"]["first"] = raw["datasets"]["test"] | {"shards": "data/train-000000.tar"}
    change(raw, "stages.finer.data.train", "other")
    change(raw, "stages.evaluate.models", ["finer"])
    change(raw, "stages.evaluate.data", "first")
    [warning] = findings(raw).warnings
    assert warning.startswith("datasets.first: 1 of 1 shards (train-000000.tar) are also in datasets.train")


def test_storage_without_its_bucket_is_refused_before_anything_trains(raw: dict[str, Any], s3: Path) -> None:
    change(raw, "stages.larger.checkpoint.storage", "s3://no-such-bucket/checkpoints")
    config = parse_config(raw, "c")
    plan(config)  # only a write can tell
    with pytest.raises(
        ConfigError,
        match=r"^stages\.larger\.checkpoint\.storage: s3://no-such-bucket/checkpoints/quick cannot be written \(",
    ):
        run_pipeline(config)
    assert not Path("runs/quick/stages").exists()


def test_a_store_without_a_place_is_refused_before_anything_starts(raw: dict[str, Any]) -> None:
    raw["tracking"] = {"uri": "sqlite:///data/index.json/mlflow.db"}
    config = parse_config(raw, "c")
    for start in (plan, run_pipeline):
        with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store .*/mlflow\.db cannot be written: "):
            start(config)
    assert not Path("runs").exists()
