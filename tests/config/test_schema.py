from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.schema import PipelineConfig
from pipeline.config.section import Duration
from pipeline.config.training import EngineConfig, ModelConfig, ScheduleConfig

UNITS = st.sampled_from(["epochs", "steps", "samples"])
DURATIONS = st.builds(Duration, value=st.floats(0, 1e12), unit=UNITS)
COUNTS = st.integers(1, 10**7)


@given(DURATIONS)
def test_duration_reads_back_from_its_text(duration: Duration) -> None:
    assert Duration.model_validate(str(duration)) == duration
    assert Duration.model_validate_json(duration.model_dump_json(), strict=True) == duration


@given(DURATIONS, COUNTS, COUNTS)
def test_steps_are_the_fewest_that_cover_the_length(duration: Duration, samples_per_epoch: int, batch: int) -> None:
    steps = duration.steps(samples_per_epoch, batch)
    per_unit = {"epochs": samples_per_epoch, "samples": 1, "steps": batch}[duration.unit]
    wanted = Fraction(repr(duration.value)) * per_unit
    assert (steps - 1) * batch < wanted <= steps * batch or (steps == 0 and wanted == 0)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 10**6))
def test_decimal_epochs_are_not_rounded_up_by_a_hair(whole: int, tenth: int, tens: int) -> None:
    duration = Duration.model_validate(f"{whole}.{tenth} epochs")
    assert duration.steps(10 * tens, 1) == (10 * whole + tenth) * tens


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("10 epochs", 10, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("1.1M samples", 1_100_000, "samples"),
        ("10k steps", 10_000, "steps"),
        (" 0.5epochs ", 0.5, "epochs"),
        ("2B samples", 2 * 10**9, "samples"),
    ],
)
def test_duration_text(text: str, value: float, unit: str) -> None:
    duration = Duration.model_validate(text)
    assert (duration.value, duration.unit) == (value, unit)


@pytest.mark.parametrize("text", ["10", "epochs", "-1 epochs", "10 eons", "1e3 steps", 10, None, ["1 epoch"]])
def test_duration_refuses(text: object) -> None:
    with pytest.raises(ValidationError):
        Duration.model_validate(text)


def test_samples_round_up_to_whole_steps() -> None:
    assert Duration.model_validate("1000 samples").steps(60_000, 128) == math.ceil(1000 / 128) == 8


def test_sections_are_immutable(raw: dict[str, Any]) -> None:
    config = PipelineConfig.model_validate(raw)
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


def test_model_overrides_are_the_fields_set_here(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["model"] |= {"depth": 3, "pool": "avg", "patch_size": 4}
    model = PipelineConfig.model_validate(raw).stages["pretrain"].model
    assert model.overrides() == {"depth": 3, "pool": "avg", "patch_size": 4}
    assert (model.fans_out, model.variants) == (True, ["nano", "micro"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("black", (0, 0, 0)), ("#ff8800", (255, 136, 0)), ([255, 136, 0], (255, 136, 0)), (None, (255, 255, 255))],
)
def test_a_background_is_a_colour(raw: dict[str, Any], given: object, expected: tuple[int, int, int]) -> None:
    if given is not None:
        raw["datasets"]["train"]["background"] = given
    config = PipelineConfig.model_validate(raw)
    assert config.datasets["train"].background == expected
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("background", ["whiet", "#ff880080", [255, 255], [0, 0, 256], [0.5, 0, 0], 255])
def test_a_background_is_three_bytes(raw: dict[str, Any], background: object) -> None:
    raw["datasets"]["train"]["background"] = background
    with pytest.raises(ValidationError):
        PipelineConfig.model_validate(raw)


def test_a_stage_without_resources_takes_those_of_the_cluster(raw: dict[str, Any]) -> None:
    raw["cluster"] = {"workers": 4}
    raw["stages"]["finetune"]["resources"] = {"workers": 2}
    config = PipelineConfig.model_validate(raw)
    assert config.resources(config.stages["pretrain"]).workers == 4
    assert config.resources(config.stages["finetune"]).workers == 2


def test_only_wsd_decays_at_its_end() -> None:
    assert str(ScheduleConfig(name="wsd", decay="2 epochs").decay) == "2 epochs"
    for settings in ({"name": "wsd"}, {"name": "cosine", "decay": "2 epochs"}):
        with pytest.raises(ValidationError, match="decay: required for name 'wsd'"):
            ScheduleConfig(**settings)


def test_compiled_layers_need_whole_weights() -> None:
    assert EngineConfig(compile=True, zero_stage=2).compile
    with pytest.raises(ValidationError, match="compile: ZeRO-3 gathers weights in hooks"):
        EngineConfig(compile=True, zero_stage=3)


def test_choices_of_a_model_are_the_ones_there_are() -> None:
    from pipeline.models.init import INITIALISERS
    from pipeline.models.layers import ACTIVATIONS

    known = {"init": set(INITIALISERS), "activation": set(ACTIVATIONS)}
    for name, values in known.items():
        optional = get_args(ModelConfig.model_fields[name].annotation)
        assert set(get_args(optional[0])) == values, name
