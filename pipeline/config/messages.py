"""Turns pydantic's errors into one plain sentence per fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.config.fields import Setting, allowed, dotted, lookup, nearest, show
from pipeline.config.schema import PipelineConfig

FIELD_PREFIX = re.compile(r"([^:]+): (.+)", re.DOTALL)
ROOT = Setting.of(PipelineConfig)


def sentences(error: ValidationError, raw: Any, root: Setting = ROOT) -> list[str]:
    """One sentence per fault: dotted path, what was found, what is allowed, the nearest valid name.

    `raw` is the data validated against the setting `root`. Faults follow the order of the file's keys, each path once,
    because pydantic reports every arm of a union, even those that the user cannot have meant.
    """
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        path, setting, meant = locate(fault["loc"], raw, root)
        if not meant:
            continue
        place, text = _sentence(fault, path, setting, raw, root)
        found.setdefault(place, text)
    return [f"{place}: {text}" if place else text for place, text in found.items()]


def locate(loc: Sequence[Any], raw: Any, root: Setting = ROOT) -> tuple[list[Any], Setting | None, bool]:
    """The path of an error location in the user's data, the setting there (None if the schema has none), and whether
    the user can have meant what the error is about.

    pydantic's locations also contain the arm of a union, which no user wrote.
    """
    path: list[Any] = []
    setting: Setting | None = root
    keys = list(loc)
    while keys and setting is not None:
        if setting.is_union:
            section = setting.section(lookup(raw, path))
            if section is None or section.__name__ not in str(keys.pop(0)):
                return path, setting, section is None
            setting = Setting.of(section)
            continue
        value = lookup(raw, path)
        key = keys.pop(0)
        setting = setting.child(key, value)
        path.append(key)
    return path, setting, True


def _sentence(fault: Any, path: list[Any], setting: Setting | None, raw: Any, root: Setting) -> tuple[str, str]:
    value = lookup(raw, path)
    match fault["type"]:
        case "extra_forbidden":
            parent_path, parent, _ = locate(fault["loc"][:-1], raw, root)
            return dotted(path), unknown_key(str(path[-1]), parent, lookup(raw, parent_path))
        case "missing":
            assert setting is not None
            return dotted(path), f"missing; set it to {setting.describe()}."
        case "value_error":
            message = str(fault["ctx"]["error"])
            if prefixed := FIELD_PREFIX.fullmatch(message):
                return dotted([*path, prefixed[1]]), f"{prefixed[2]}."
            return dotted(path), f"found {show(value)}, expected {message}."
    assert setting is not None
    near = nearest(value, setting.choices()) if isinstance(value, str) else None
    return dotted(path), f"found {show(value)}, expected {setting.describe()}" + (
        f"; did you mean {near!r}?" if near else "."
    )


def unknown_key(key: str, parent: Setting | None, raw: Any) -> str:
    """The sentence about a key that the section `parent` lacks."""
    keys = parent.keys(raw) if parent else []
    for name in keys:  # the most common mistake is one level too high: `lr` belongs in `optimizer`
        inner = parent.child(name, raw) if parent else None
        if inner is not None and inner.section(None) is not None and key in inner.keys(None):
            return f"unknown key; did you mean '{name}.{key}'? Allowed: {', '.join(keys)}."
    return f"unknown key, {allowed(key, keys)}."
