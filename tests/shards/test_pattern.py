from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.pattern import expand_braces, parse_pattern

PRESENT = ["train-000000.tar", "train-000001.tar", "test-000000.tar", "train-000000.tar.idx", ".tmp.tar", "index.json"]


@given(st.integers(0, 999), st.integers(0, 30), st.integers(1, 7))
def test_a_range_names_each_number_once_with_its_zeros(first: int, more: int, width: int) -> None:
    names = expand_braces(f"a-{{{first:0{width}d}..{first + more:0{width}d}}}.tar")
    assert [int(name[2:-4]) for name in names] == list(range(first, first + more + 1))
    assert all(len(name[2:-4]) >= width for name in names)


def test_a_list_of_names_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    names = [f"train-{number:06d}.tar" for number in range(50)]
    assert parse_pattern(f"{tmp_path}/{{{','.join(names)}}}").select(names) == names


def test_groups_multiply() -> None:
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ["test-000000.tar", "train-000000.tar", "train-000001.tar"]),
        ("train-*", ["train-000000.tar", "train-000001.tar"]),
        ("train-00000[1-9].tar", ["train-000001.tar"]),
        ("train-{000001..000000}.tar", ["train-000001.tar", "train-000000.tar"]),
        ("{train,test}-*.tar", ["train-000000.tar", "train-000001.tar", "test-000000.tar"]),
        ("{train-*,train-000000.tar}", ["train-000000.tar", "train-000001.tar"]),
        ("test-000000.tar", ["test-000000.tar"]),
    ],
)
def test_selects(tmp_path: Path, name: str, expected: list[str]) -> None:
    for folder in (str(tmp_path), "s3://bucket/data"):
        parsed = parse_pattern(f"{folder}/{name}")
        assert (parsed.folder, parsed.select(PRESENT)) == (folder, expected)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    odd = tmp_path / "{x}[1]"
    odd.mkdir()
    assert parse_pattern(str(odd)).folder == str(odd)


def test_local_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for pattern in ("*.tar", "./a.tar", "", f"file://{tmp_path}/a.tar"):
        assert parse_pattern(pattern or ".").folder == str(tmp_path)


@pytest.mark.parametrize("name", ["a#b?c=d%20e f", "[x]*{y}", "a::b://c"])
@pytest.mark.parametrize("pattern", ["train-*.tar", "train-{000000..000001}.tar", "train-000000.tar", ""])
def test_a_folder_that_is_there_means_itself(tmp_path: Path, name: str, pattern: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    found = parse_pattern(str(folder / pattern))
    assert found.folder == str(folder)
    assert found.select(["train-000000.tar", "train-000001.tar"])[:1] == ["train-000000.tar"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "empty"),
        ("pipe:cat a.tar", "refused"),
        ("d/{a,b}/x-*.tar", "only the file name"),
        ("x-{0..1.tar", "unbalanced braces"),
        ("x-{01}.tar", "neither"),
        ("x-{0..99999999}.tar", "more than"),
    ],
)
def test_refuses(pattern: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("", ["a.tar.gz", "b.tgz"]),
        ("a.tar", ["a.tar.gz"]),
        ("{a,c}.tar", ["a.tar.gz"]),
        ("b*", ["b.tgz"]),
        ("c.tar", []),  # it has been unpacked
    ],
)
def test_compressed_tars_are_meant_by_either_name(tmp_path: Path, name: str, packed: list[str]) -> None:
    present = ["a.tar.gz", "b.tgz", "c.tar.xz", "c.tar", ".d.tar.gz"]
    assert parse_pattern(f"{tmp_path}/{name}").select_packed(present) == packed


def test_many_compressed_tars_under_many_names_are_found_at_once(tmp_path: Path) -> None:
    parsed = parse_pattern(f"{tmp_path}/train-{{000000..019999}}.tar")
    present = [f"{name}.gz" for name in parsed.names]
    assert parsed.select_packed(present) == present
