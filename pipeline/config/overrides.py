"""`key=value` settings from the command line, applied to the raw data of a pipeline file."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.fields import Setting, lookup, nearest
from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError

ROOT = Setting.of(PipelineConfig)


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with each `dotted.path=value` set in order; values are YAML.

    A path may name any setting of the schema, whether the file sets it or not, and the file's entries in `datasets` and
    `stages`. Raises ConfigError with one sentence per invalid override.
    """
    result = copy.deepcopy(dict(raw))
    faults = []
    for override in overrides:
        try:
            _apply(result, override)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return result


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    path = path.strip()
    if not separator or not path:
        raise ConfigError(f"override {override!r}: expected key=value, such as stages.pretrain.duration='10 epochs'.")
    value = parse_yaml(text, f"override {override!r}")
    *parents, last = path.split(".")
    setting: Setting = ROOT
    section: Any = raw
    for depth, key in enumerate([*parents, last]):
        if not isinstance(section, dict):
            held = ".".join(path.split(".")[:depth])
            raise ConfigError(f"override {override!r}: {held} has no keys; set it as a whole.")
        if key not in setting.keys(section):
            raise ConfigError(f"override {override!r}: {_unknown(raw, path, depth, setting.keys(section))}")
        inner = setting.child(key, section)
        assert inner is not None
        if depth == len(parents):
            section[key] = value
            return
        if section.get(key) is None and inner.section({}) is not None:
            section[key] = {}
        setting, section = inner, section.get(key)


def _unknown(raw: Mapping[str, Any], path: str, depth: int, options: list[str]) -> str:
    """The sentence about a path whose key at `depth` does not exist among `options`."""
    keys = path.split(".")
    where, unknown = ".".join(keys[:depth]), ".".join(keys[: depth + 1])
    if (near := nearest(keys[depth], options)) is not None:
        return f"no setting {unknown}; did you mean '{'.'.join([*keys[:depth], near, *keys[depth + 1 :]])}'?"
    elsewhere = [known for known in _paths(ROOT, raw) if known.endswith(f".{path}")]
    if elsewhere:
        return f"no setting {path}; did you mean " + " or ".join(f"'{known}'" for known in elsewhere[:6]) + "?"
    return f"no setting {unknown}; {where or 'the file'} has {', '.join(options) or 'no keys'}."


def _paths(setting: Setting, raw: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted path that an override of `raw` may name."""
    for key in setting.keys(raw):
        yield prefix + key
        inner = setting.child(key, raw)
        if inner is not None:
            yield from _paths(inner, lookup(raw, [key]), f"{prefix}{key}.")
