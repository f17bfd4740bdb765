from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.yaml_text import parse_yaml, read_yaml, to_yaml
from pipeline.errors import ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("-2", -2),
        ("010", 10),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("10 epochs", "10 epochs"),
        ("", None),
        ("null", None),
        ("1e", "1e"),
        ("data/train-{00..11}.tar", "data/train-{00..11}.tar"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text, "t")
    assert parsed == value
    assert type(parsed) is type(value)


@given(PLAIN)
def test_what_is_written_reads_back_equal(value: object) -> None:
    read = parse_yaml(to_yaml(value), "t")
    assert read == value
    assert repr(read) == repr(value)  # types too: True is not 1, and 1.0 is not 1


@given(st.sampled_from(["1e-3", "yes", "1.5", "0x1F", "2026-01-01", "null", "1e5", "on", "~", "012", ".inf"]))
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert parse_yaml(to_yaml({"a": text}), "t") == {"a": text}


def test_duplicate_key_names_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml:3:1: not valid YAML, the key 'a' appears twice\.$"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "f.yaml")


def test_duplicate_key_in_a_nested_mapping() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:3:3: .*'lr' appears twice"):
        parse_yaml("a:\n  lr: 1\n  lr: 2\n", "f.yaml")


def test_merge_keys_share_a_section() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: {<<: *b, z: 4}\n"
    read = parse_yaml(text, "t")
    assert read == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 3, "z": 4}}


def test_syntax_error_names_file_line_and_column() -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml:2:4: not valid YAML, ") as caught:
        parse_yaml("a: 1\nb: ]\n", "f.yaml")
    assert "\n" not in str(caught.value)


def test_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.system [echo]", "f.yaml")


def test_an_alias_that_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: &x {b: *x}", "f.yaml")


def test_an_alias_is_a_copy() -> None:
    value = parse_yaml("a: &x {b: [1], c: {d: 2}}\ne: *x\nf: {<<: *x, g: 3}\n", "f.yaml")
    assert value == {"a": {"b": [1], "c": {"d": 2}}, "e": value["a"], "f": {**value["a"], "g": 3}}
    value["e"]["b"].append(5)
    value["f"]["c"]["d"] = 6
    assert value["a"] == {"b": [1], "c": {"d": 2}}


def test_missing_file_lists_the_yaml_files_nearby(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "quik.yaml")
    assert str(caught.value) == f"{tmp_path}/quik.yaml: no such file; there are {tmp_path}/quick.yaml."


def test_a_folder_or_binary_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "b.yaml", "it is not UTF-8 text")):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"{path}: cannot be read, {reason}."
