"""The inputs that determine a stage's result, as plain data; each type of stage says which it has.

As long as the digest of its inputs is unchanged, a finished stage is skipped and its checkpoints remain valid.
Settings at their defaults are left out, so that a setting added by a later version changes no digest; changing a
default means raising `VERSION`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.config.section import Duration, Section
from pipeline.config.task import DEFAULT, TaskConfig
from pipeline.models.model_spec import ModelSpec
from pipeline.stream.source import Source

VERSION = 2  # of the inputs' meaning; raising it makes every stage run again
NAMED = "models", "train"  # inputs that map names to digests or data sets
DIGESTS = "exclude", "init_from", "teacher", "model"  # inputs known only by digest


def model_inputs(spec: ModelSpec) -> dict[str, Any]:
    """A model without its weights: its backbone, plus heads and task unless it is a plain classifier."""
    backbone, plain = non_defaults(spec.backbone), ModelSpec.classifier(spec.backbone, max(spec.num_classes, 1))
    if spec == plain:
        return backbone | {"num_classes": spec.num_classes}
    return backbone | {"heads": _plain(spec.heads), "task": spec.task}


def source_inputs(source: Source) -> dict[str, Any]:
    """A data set as it is read: its content and its preprocessing."""
    inputs: dict[str, Any] = {"digest": source.index.digest, "image_key": source.keys.image_key}
    targets = {kind: target.inputs() for kind, target in source.targets.items()}
    inputs |= targets.pop("class_id", {})  # top level, where they were before other kinds existed
    return inputs | ({"targets": targets} if targets else {}) | settings(source.config)


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """32 hex digits that change when an input does."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a stage's inputs do not match the recorded ones: the end of `runs again, because`."""
    if before.get("version") != now.get("version"):
        return "another version of this package recorded its inputs"
    return f"{', '.join(differences(before, now)) or 'its inputs'} changed"


def differences(before: Any, after: Any, path: str = "", *, comes_or_goes: bool = False) -> list[str]:
    """Dotted paths at which two inputs differ, with both values if they are short.

    A missing setting is at its default; a missing model or data set was added or removed. Digests are not shown.
    """
    if before == after:
        return []
    if comes_or_goes and (before is None or after is None):
        return [f"{path} ({'added' if before is None else 'removed'})"]
    if all(value is None or isinstance(value, Mapping) for value in (before, after)):
        old, new = before or {}, after or {}
        nested = [
            found
            for key in dict.fromkeys([*old, *new])
            for found in differences(
                old.get(key),
                new.get(key),
                f"{path}.{key}" if path else str(key),
                comes_or_goes=path in NAMED or (path, key) == ("", "val"),
            )
        ]
        if nested:
            return nested
    if path in DIGESTS or path.startswith("models.") or path.endswith(".digest"):
        return [path]
    was, now = ("default" if value is None else value for value in (before, after))
    shown = f" ({was} to {now})" if len(f"{was}{now}") <= 60 else ""
    return [f"{path}{shown}"]


def settings(section: Section) -> dict[str, Any]:
    """The settings of a section that are inputs themselves and differ from their defaults, as plain data."""
    left_out = section.resolved.keys() | section.without_effect.keys()
    given: dict[str, Any] = {}
    if isinstance(section, TaskConfig) and section.type != DEFAULT:
        given["type"] = section.type  # the section's own default, but not the stage's
    for name, setting in type(section).model_fields.items():
        if name not in left_out:
            value = _plain(getattr(section, name))
            if setting.is_required() or value != _plain(setting.get_default(call_default_factory=True)):
                given[name] = value
    return given


def non_defaults(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as plain data."""
    given = {}
    for field in dataclasses.fields(value):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (current := _plain(getattr(value, field.name))) != _plain(default):
            given[field.name] = current
    return given


def without_none(inputs: dict[str, Any]) -> dict[str, Any]:
    """Drop absent inputs, so that a later version can add one. A setting of null is not absent."""
    return {name: value for name, value in inputs.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, Section):
        return settings(value)
    if dataclasses.is_dataclass(value):
        return non_defaults(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
