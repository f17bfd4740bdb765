"""Loads a checked PipelineConfig from a YAML file and `key=value` overrides, and dumps one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.fields import Setting, show
from pipeline.config.messages import sentences
from pipeline.config.overrides import apply_overrides
from pipeline.config.paths import expand
from pipeline.config.references import reference_faults
from pipeline.config.schema import PipelineConfig
from pipeline.config.task import AnyTask, TaskConfig
from pipeline.config.yaml_text import parse_yaml, read_yaml, to_yaml
from pipeline.errors import ConfigError

TASK: TypeAdapter[TaskConfig] = TypeAdapter(AnyTask)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The pipeline that a YAML file describes, with `dotted.path=value` overrides applied.

    `base: other.yaml`, relative to the file, names a file that supplies settings missing here; sections merge key by
    key, lists and values replace. Other relative paths stay relative to the current directory.
    Raises ConfigError with one sentence (one line) per fault.
    """
    return parse_config(read_config(path, overrides), source=str(path))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of `load_config` as plain data: base and overrides applied, nothing checked, no path expanded."""
    return apply_overrides(_read_merged(Path(path)), overrides)


def parse_config(raw: Mapping[str, Any], source: str) -> PipelineConfig:
    """The pipeline described by plain data; `source` begins each sentence of the ConfigError about its faults.

    Strict like JSON: text does not become a number, and true does not become 1.
    """
    text = json.dumps(raw, default=str)
    try:
        config = PipelineConfig.model_validate_json(text, strict=True)
        faults = list(reference_faults(config))
    except ValidationError as error:
        faults = sentences(error, json.loads(text))
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
    return config


def parse_task(text: str, source: str) -> TaskConfig:
    """The task that a `task` section in YAML describes; `source` begins each sentence of the ConfigError."""
    raw = parse_yaml(text, source)
    try:
        return TASK.validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        faults = sentences(error, raw, Setting.of(AnyTask))
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults)) from None


def dump_config(config: PipelineConfig) -> str:
    """YAML with every setting written out; loads back to an equal config."""
    return to_yaml(config.model_dump(mode="json"))


def _read_merged(path: Path) -> dict[str, Any]:
    raw = _read_mapping(path)
    if "base" not in raw:
        return raw
    base = raw.pop("base")
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: base: found {show(base)}, expected the name of one YAML file, relative to this one."
        )
    try:
        base_path = path.parent / expand(base)
    except ValueError as error:
        raise ConfigError(f"{path}: base: found {show(base)}, expected {error}.") from None
    inherited = _read_mapping(base_path)
    if "base" in inherited:
        raise ConfigError(f"{path}: base: {base_path} has a base itself; only one level is allowed, so merge the two.")
    return _merge(inherited, raw)


def _read_mapping(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {show(raw)}"
        raise ConfigError(
            f"{path}: {found}, expected a mapping with the keys {', '.join(PipelineConfig.model_fields)}."
        )
    return raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged
