from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.references import is_foreign
from pipeline.errors import ConfigError

NOT_A_STAGE = "which is not a stage, a path to an export"


def faults(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, "c")
    return [line.removeprefix("c: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("stage", "keys", "value", "path", "near"),
    [
        ("pretrain", ("data", "train"), "trian", "stages.pretrain.data.train", "train"),
        ("pretrain", ("data", "val"), "tests", "stages.pretrain.data.val", "test"),
        ("evaluate", ("data",), "tset", "stages.evaluate.data", "test"),
        ("finetune", ("init_from",), "pretrian", "stages.finetune.init_from", "pretrain"),
        ("finetune", ("init_from",), "pretrain/micr", "stages.finetune.init_from", "pretrain/micro"),
        ("evaluate", ("models",), ["finetune", "fintune"], "stages.evaluate.models[1]", "finetune"),
        ("export", ("model",), "Finetune", "stages.export.model", "finetune"),
    ],
)
def test_wrong_names_give_path_and_nearest(
    raw: dict[str, Any], stage: str, keys: tuple[str, ...], value: Any, path: str, near: str
) -> None:
    section = raw["stages"][stage]
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    found = value[-1] if isinstance(value, list) else value
    [sentence] = faults(raw)
    assert sentence.startswith(f"{path}: found '{found}'")
    assert f"did you mean '{near}'?" in sentence


def test_a_stage_that_trains_nothing_is_no_model(raw: dict[str, Any]) -> None:
    raw["stages"]["export"]["model"] = "evaluate"
    assert faults(raw) == [
        "stages.export.model: found 'evaluate', whose type evaluate does not train a model; "
        "allowed: pretrain, finetune."
    ]


def test_a_variant_of_a_stage_that_names_none(raw: dict[str, Any]) -> None:
    raw["stages"]["export"]["model"] = "finetune/nano"
    assert faults(raw) == [
        "stages.export.model: found 'finetune/nano', but stage finetune has no variant 'nano'; "
        "did you mean 'finetune'? Allowed: finetune."
    ]


def test_paths_to_exports(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw["stages"]["evaluate"]["models"] = ["./export", "/somewhere/export", "exports/small"]
    [sentence] = faults(raw)
    assert sentence.startswith(f"stages.evaluate.models[2]: found 'exports/small', {NOT_A_STAGE}")
    (tmp_path / "exports").mkdir()
    parse_config(raw, "c")


@pytest.mark.parametrize("reference", ["timm:vit_tiny_patch16_224", "weights.safetensors", "far/weights.pth"])
def test_weights_from_elsewhere(raw: dict[str, Any], reference: str) -> None:
    raw["stages"]["finetune"]["init_from"] = reference
    config = parse_config(raw, "c")
    assert is_foreign(config, reference)
    assert not is_foreign(config, "pretrain")
    assert not is_foreign(config, "./export")


def test_a_cycle_is_reported(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["init_from"] = "finetune"
    raw["stages"]["finetune"]["data"]["val"] = "test"
    [sentence] = faults(raw)
    place, text = sentence.split(": ", 1)
    assert place in ("stages.pretrain.init_from", "stages.finetune.init_from")
    assert "pretrain -> finetune -> pretrain" in text or "finetune -> pretrain -> finetune" in text


def test_a_stage_that_starts_from_itself(raw: dict[str, Any]) -> None:
    raw["stages"]["finetune"]["init_from"] = "finetune"
    [sentence] = faults(raw)
    assert sentence.startswith("stages.finetune.init_from: the stages form a cycle, finetune -> finetune;")


def test_the_best_variant_needs_validation(raw: dict[str, Any]) -> None:
    del raw["stages"]["pretrain"]["data"]["val"]
    raw["stages"]["evaluate"]["models"] = ["pretrain"]
    assert faults(raw) == [
        "stages.pretrain.data.val: missing, but stages.finetune.init_from uses the best variant of pretrain by "
        "validation accuracy; allowed: train, test."
    ]


def test_one_variant_needs_no_choice(raw: dict[str, Any]) -> None:
    del raw["stages"]["pretrain"]["data"]["val"]
    raw["stages"]["finetune"]["init_from"] = "pretrain/micro"
    parse_config(raw, "c")


@pytest.mark.parametrize(("field", "value"), [("lanes", 2), ("global_batch_size", 2)])
def test_each_worker_needs_a_lane_and_a_sample(raw: dict[str, Any], field: str, value: int) -> None:
    stage = raw["stages"]["finetune"]
    stage["resources"] = {"workers": 3}
    (stage["data"] if field == "lanes" else stage)[field] = value
    path = "data.lanes" if field == "lanes" else field
    assert faults(raw) == [
        f"stages.finetune.{path}: 2 is too few for stages.finetune.resources.workers = 3, as each needs at least one."
    ]


PROBE = {"type": "probe", "models": ["pretrain", "random"], "data": {"train": "train", "test": "test"}}


def test_a_probe_names_data_and_models(raw: dict[str, Any]) -> None:
    raw["stages"]["probe"] = PROBE
    parse_config(raw, "c")
    raw["stages"]["probe"] = PROBE | {"models": ["pretrian", "pixels"], "data": {"train": "trian", "test": "test"}}
    assert [fault.partition(": ")[0] for fault in faults(raw)] == [
        "stages.probe.data.train",
        "stages.probe.models[0]",
    ]


def test_a_stage_with_the_name_of_a_baseline(raw: dict[str, Any]) -> None:
    raw["stages"]["random"] = raw["stages"]["pretrain"]
    raw["stages"]["probe"] = PROBE
    assert faults(raw) == [
        "stages.random: found the name of a baseline in stages.probe.models; give the stage another name."
    ]


def test_baselines_alone(raw: dict[str, Any]) -> None:
    raw["stages"]["probe"] = PROBE | {"models": ["random", "pixels"]}
    assert faults(raw) == [
        "stages.probe.models: random and pixels take their shape and images from a model; name one too."
    ]


def test_a_probe_of_no_method(raw: dict[str, Any]) -> None:
    raw["stages"]["probe"] = PROBE | {"methods": {}}
    assert faults(raw) == [
        "stages.probe.methods: found {}, expected at least one of knn, linear and retrieval, with its settings or {}."
    ]
