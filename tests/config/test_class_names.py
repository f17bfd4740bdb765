from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.class_names import normalise_class_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat & <b>", "cat & <b>"),
        ("日本 tea", "日本 tea"),
        (unicodedata.normalize("NFD", "dög"), "dög"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("two\nlines", r"two\x0alines"),
        ("\ud800", r"\ud800"),
        ("\ufeffcat\r", "cat"),
        ("\u00a0tea cup \t", "tea cup"),
    ],
)
def test_one_visible_spelling(text: str, expected: str) -> None:
    assert normalise_class_name(text) == expected


@given(st.binary(max_size=12))
def test_any_folder_name_can_be_stored_and_stays(raw: bytes) -> None:
    name = normalise_class_name(os.fsdecode(raw))
    assert normalise_class_name(name) == name
    assert name.encode().decode() == name
    assert all(unicodedata.category(character) not in ("Cc", "Cs") for character in name)
