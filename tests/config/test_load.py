from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.load import dump_config, load_config, parse_config
from pipeline.config.paths import literal
from pipeline.config.schema import PipelineConfig
from pipeline.config.section import Duration
from pipeline.config.yaml_text import parse_yaml, to_yaml
from pipeline.errors import ConfigError

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
PATHS = TEXTS.filter(lambda path: not path.startswith("~")).map(literal)
FLOATS = st.floats(1e-12, 1e6)
DURATIONS = st.builds(Duration, value=st.floats(0.001, 1e9), unit=st.sampled_from(["epochs", "steps", "samples"]))


def write(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else to_yaml(data))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS, PATHS, FLOATS, DURATIONS, st.integers(0, 2**63), st.sampled_from([28, (28, 56)]))
def test_a_dump_loads_back_equal(
    raw: dict[str, Any],
    tmp_path: Path,
    shards: str,
    uri: str,
    lr: float,
    length: Duration,
    seed: int,
    size: int | tuple[int, int],
) -> None:
    raw = copy.deepcopy(raw)
    raw |= {"seed": seed, "tracking": {"uri": uri}}
    raw["datasets"]["train"]["shards"] = shards
    raw["stages"]["finetune"] |= {"optimizer": {"lr": lr}, "duration": str(length)}
    raw["stages"]["finetune"]["model"]["image_size"] = size
    config = PipelineConfig.model_validate(raw)
    again = load_config(write(tmp_path, "dumped.yaml", dump_config(config)))
    assert again == config


@pytest.mark.parametrize("tokenizer", ["words.json", {"size": 300}, {"captions": 10}, {}])
def test_a_dumped_tokenizer_loads_back(raw: dict[str, Any], tokenizer: Any) -> None:
    raw["stages"]["pretrain"]["task"] = {"type": "clip", "tokenizer": tokenizer}
    config = PipelineConfig.model_validate(raw)
    assert parse_config(parse_yaml(dump_config(config), "c"), "c") == config


def test_overrides_apply_after_the_base(raw: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", raw)
    over = {"base": "base.yaml", "name": "big", "stages": {"pretrain": {"model": {"variant": ["nano", "tiny"]}}}}
    path = write(tmp_path, "big.yaml", over)
    config = load_config(path, ["stages.pretrain.model.depth=2"])
    model = config.stages["pretrain"].model
    assert (config.name, model.variant, model.image_size, model.depth) == ("big", ["nano", "tiny"], 28, 2)
    assert list(config.stages) == list(raw["stages"])


def test_lists_of_the_base_are_replaced(raw: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", raw)
    path = write(tmp_path, "c.yaml", {"base": "base.yaml", "stages": {"evaluate": {"models": ["finetune"]}}})
    assert load_config(path).stages["evaluate"].models == ["finetune"]


def test_the_base_is_found_beside_the_file_from_any_folder(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "base.yaml", raw)
    write(tmp_path / "configs", "c.yaml", "base: base.yaml\n")
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/c.yaml")
    assert config.datasets["train"].shards == "data/train-*.tar"  # stays relative to the current folder


def test_a_base_with_a_base_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", raw)
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    path = write(tmp_path, "c.yaml", "base: b.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: base: {tmp_path}/b.yaml has a base itself; only one level is allowed, so merge the two."
    )


def test_a_missing_base_lists_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: no such file; there are .*c\.yaml\.$"):
        load_config(path)


def test_a_base_that_is_no_name(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "base: [a.yaml]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: base: found \['a\.yaml'\], expected the name of one YAML file"):
        load_config(path)


@pytest.mark.parametrize(("text", "found"), [("", "is empty"), ("- a\n", "holds ['a']"), ("hello\n", "holds 'hello'")])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = write(tmp_path, "c.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {found}, expected a mapping with the keys name, seed, ")


@pytest.mark.parametrize(("seed", "found"), [("!!binary aGk=", "'b'hi''"), (".nan", "nan"), ("{1: 2}", "a mapping")])
def test_values_that_json_lacks(raw: dict[str, Any], tmp_path: Path, seed: str, found: str) -> None:
    path = write(tmp_path, "c.yaml", f"{to_yaml(raw)}\nseed: {seed}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: seed: found {found}, expected a whole number from 0."


def test_syntax_error_names_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "name: a\nstages: {x: [}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2:14: not valid YAML, "):
        load_config(path)
