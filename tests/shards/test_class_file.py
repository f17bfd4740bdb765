from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.class_file import read_class_names, read_classes


@pytest.mark.parametrize(
    "data",
    [
        "cat, black\ndög\nemu\n".encode(),
        "\ufeffcat, black\r\ndög\r\nemu\r\n".encode(),  # Notepad, Excel
        "cat, black\r\ndög\r\nemu\r\n".encode("utf-16"),  # PowerShell's >
        " cat, black \r\rdo\u0308g\t\remu\u00a0".encode(),
    ],
)
def test_one_name_a_line_whoever_saved_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    assert read_class_names(str(tmp_path / "names.txt")) == ["cat, black", "dög", "emu"]


def test_a_list_may_be_longer_than_a_file_name() -> None:
    names = [f"class {number}" for number in range(1000)]
    assert read_class_names(", ".join(names)) == names


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"cat\n\ndog\n cat\n", "'cat' appears at lines 1 and 4, but class names must differ"),
        (b"caf\xe9\n", "not UTF-8 text; save it as UTF-8"),
        (b"\xef\xbb\xbf\r\n", "found no class names"),
    ],
)
def test_a_file_that_names_no_list_of_classes(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    with pytest.raises(DataError, match=fault):
        read_class_names(str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("cat,dog,,cat ", "'cat' appears at positions 1 and 4"),
        (" ,", "found no class names"),
        ("clases.txt", "--classes clases.txt: no such file"),
        ("lists/clases", "--classes lists/clases: no such file"),
    ],
)
def test_what_is_no_list_of_classes(given: str, fault: str) -> None:
    with pytest.raises(DataError, match=re.escape(fault)):
        read_class_names(given)


def test_names_of_kinds(tmp_path: Path) -> None:
    assert read_classes(["mask=wall,door", "boxes=cat"]) == {"mask": ["wall", "door"], "boxes": ["cat"]}
    (tmp_path / "split=train").mkdir()
    (tmp_path / "split=train" / "names.txt").write_text("cat\ndog\n")
    assert read_classes([str(tmp_path / "split=train" / "names.txt")]) == ["cat", "dog"]


@pytest.mark.parametrize("given", ["masks=wall,door", "masks=names.txt"])
def test_an_unknown_kind_is_no_part_of_a_name(given: str) -> None:
    with pytest.raises(DataError, match=r"'masks' is no kind of label; did you mean 'mask'\?"):
        read_classes([given])
