"""Reads the schema itself: which setting a dotted path names, and its allowed values in words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic.fields import FieldInfo

from pipeline.config.section import Duration, Section
from pipeline.credentials import shown

UNIONS = (Union, types.UnionType)
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Setting:
    """A place in the schema: its type and its bounds."""

    annotation: Any
    bounds: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any, bounds: Iterable[Any] = ()) -> Setting:
        """Strip `Annotated`, and `None` if a single type remains."""
        bounds = tuple(bounds)
        while True:
            origin, args = get_origin(annotation), get_args(annotation)
            if origin is Annotated:
                annotation = args[0]
                for extra in args[1:]:
                    bounds = (*bounds, *extra.metadata) if isinstance(extra, FieldInfo) else (*bounds, extra)
            elif origin in UNIONS and len(rest := [a for a in args if a is not type(None)]) == 1:
                annotation = rest[0]
            else:
                return cls(annotation, bounds)

    def section(self, raw: Any) -> type[Section] | None:
        """The section class here (`raw` chooses among several); None for a plain value."""
        if is_section(self.annotation):
            chosen: type[Section] = self.annotation.chosen_by(raw)
            return chosen
        if self.is_union and isinstance(raw, Mapping):
            return next((option for option in get_args(self.annotation) if is_section(option)), None)
        return None

    def child(self, key: Any, raw: Any) -> Setting | None:
        """The setting named `key` inside this one, whose raw value is `raw`; None if it has no such part."""
        section = self.section(raw)
        if section is not None:
            field = section.model_fields.get(key) if isinstance(key, str) else None
            return field and Setting.of(field.annotation, field.metadata)
        if (origin := get_origin(self.annotation)) is dict:
            return Setting.of(get_args(self.annotation)[1])
        if origin in (list, tuple) and isinstance(key, int):
            return Setting.of(get_args(self.annotation)[0])
        return None

    @property
    def is_union(self) -> bool:
        """Whether values of several plain types are allowed here."""
        return get_origin(self.annotation) in UNIONS

    def keys(self, raw: Any) -> list[str]:
        """The names valid directly under this setting, given its raw value."""
        section = self.section(raw)
        if section is not None:
            return list(section.model_fields)
        if get_origin(self.annotation) is dict and isinstance(raw, Mapping):
            return [str(key) for key in raw]
        return []

    def choices(self) -> list[str]:
        """The strings allowed here, if they are a fixed set."""
        fixed = get_args(self.annotation) if get_origin(self.annotation) is Literal else ()
        return [option for option in fixed if isinstance(option, str)]

    def describe(self) -> str:
        """What is allowed here, in words: 'a whole number above 0'."""
        annotation, origin, args = self.annotation, get_origin(self.annotation), get_args(self.annotation)
        if annotation is Duration:
            return "a duration such as '10 epochs', '5000 steps' or '1.2M samples'"
        if origin is Literal:
            return "one of " + ", ".join(map(str, args))
        if self.is_union:
            return " or ".join(Setting.of(option).describe() for option in args if option is not type(None))
        if origin in (list, tuple):
            count = f" of {len(args)}" if origin is tuple and Ellipsis not in args else _bounds(self.bounds)
            return f"a list{count}, each {Setting.of(args[0]).describe()}"
        if origin is dict:
            values = "names" if args[1] is str else "lists" if get_origin(args[1]) is list else "sections"
            return f"a mapping of names to {values}"
        if (section := self.section(None)) is not None:
            return "a section with the keys " + ", ".join(section.model_fields)
        return PLAIN[annotation] + _bounds(self.bounds)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _bounds(bounds: Iterable[Any]) -> str:
    words = []
    for bound in bounds:
        match bound:
            case Gt(gt=limit):
                words.append(f"above {limit}")
            case Ge(ge=limit):
                words.append(f"from {limit}")
            case Lt(lt=limit):
                words.append(f"below {limit}")
            case Le(le=limit):
                words.append(f"up to {limit}")
            case MinLen(min_length=limit):
                words.append(f"of at least {limit}")
            case MultipleOf(multiple_of=divisor):
                words.append(f"divisible by {divisor}")
    return "".join(f" {word}" for word in words)


def dotted(path: Sequence[Any]) -> str:
    """`('stages', 'a', 'models', 0)` as `stages.a.models[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def lookup(raw: Any, path: Sequence[Any]) -> Any:
    """The raw value at a path, None if there is none."""
    for key in path:
        if isinstance(raw, Mapping):
            raw = raw.get(key)
        elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            raw = raw[key]
        else:
            return None
    return raw


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that a misspelt name most likely stands for."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.55)
    return by_lower[close[0]] if close else None


def allowed(name: str, options: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the nearest valid name, if any is close, and all of them."""
    names = list(options)
    if not names:
        return "there are none to choose from"
    near = nearest(name, names)
    return (f"did you mean {near!r}? Allowed: " if near else "allowed: ") + ", ".join(names)


def show(value: Any) -> str:
    """A value as the user wrote it, shortened and without credentials."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping" if value else "{}"
    if isinstance(value, str):
        value = f"'{shown(value)}'"
    text = "[" + ", ".join(map(show, value)) + "]" if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
