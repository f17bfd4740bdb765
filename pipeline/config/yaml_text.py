"""YAML as this project reads and writes it: the core schema of YAML 1.2 with merge keys, no object construction.

`1e-3` is a number; `yes`, `2026-01-01` and `0x1F` are text; a key that appears twice is an error. PyYAML does it with
other tables of types. ruamel.yaml would need as many corrections: it reads dates, lets an alias contain itself or
share its value, and writes `yes` without quotes, which readers of YAML 1.1 take for true.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
IMPLICIT_TAGS = (  # (tag, pattern, first characters); the first match wins, so integers come before floats
    ("merge", re.compile(r"<<"), ["<"]),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the implicit types of YAML 1.2, refusing duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            seen.add(str(key))
        # Depth first, so that an alias that contains itself is an error here, not an infinite loop later.
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Quotes anything that a YAML 1.1 or 1.2 reader would not take for text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Block and plain styles lose NEL and the Unicode line separators; only double quotes escape them.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in IMPLICIT_TAGS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)  # PyYAML's own reads 010 as eight
_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{FLOAT.pattern})\Z"), list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """The value of one YAML document. `source` names it in errors, which also give line and column.

    An alias is a copy of its anchor's value: changing one leaves the other alone.
    """
    try:
        return _unshared(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: not valid YAML, {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML, {' '.join(str(error).split())}.") from None


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file. Raises ConfigError if it cannot be read; a missing one lists the YAML files nearby."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {_files_near(path)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read, {reason}.") from None
    return parse_yaml(text, str(path))


def _files_near(path: Path) -> str:
    """Where there are YAML files: next to the missing path, otherwise in configs/, otherwise here."""
    for folder in dict.fromkeys((path.parent, Path("configs"), Path())):
        found = sorted(p for pattern in ("*.yaml", "*.yml") for p in folder.glob(pattern))
        if found:
            return "there are " + ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
    return f"no YAML file in {path.parent} either"


def to_yaml(data: Any) -> str:
    """YAML text of plain data, keeping the order of its keys."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
