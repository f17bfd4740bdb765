from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.pictures import pictures, safe
from pipeline.shards.write import TarWriter


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], str]:
    def write(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
        return str(path)

    return write


def test_names_tell_equal_names_of_different_folders_and_formats_apart(image: Callable[[str], str]) -> None:
    given = [image("a/x.png"), image("b/x.png"), image("b/x.jpg"), image("a/x.png")]
    found = pictures(given)
    assert [one.below for one in found] == ["a/x.png", "b/x.png", "b/x.jpg"]
    assert len(found) == 3
    assert [one.name for one in found] == given[:3]


def test_a_folder_is_read_at_any_depth_but_for_the_results_in_it(image: Callable[[str], str], tmp_path: Path) -> None:
    image("photos/x.png"), image("photos/deep/er/x.png"), image("photos/out/x.png.drawn.jpg")
    found = pictures([str(tmp_path / "photos")], tmp_path / "photos" / "out")
    assert [one.below for one in found] == ["deep/er/x.png", "x.png"]
    assert len(pictures([str(tmp_path / "photos")])) == 3
    both = pictures([str(tmp_path / "photos" / "deep"), str(tmp_path / "photos" / "out")])
    assert [one.below for one in both] == ["deep/er/x.png", "out/x.png.drawn.jpg"]


def test_a_missing_file_is_one_that_cannot_be_read(image: Callable[[str], str], tmp_path: Path) -> None:
    found = list(pictures([str(tmp_path / "none.png"), image("x.png")]))
    assert [one.fault for one in found] == ["No such file or directory", ""]
    assert found[0].data is None


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="found no images; give a folder with PNG, JPEG or WebP files, or with tars"):
        pictures([str(tmp_path)])


def test_shards_give_every_sample_with_its_members(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "s" / "train-000000.tar") as tar:
        tar.write("one", {"png": png(), "json": b"{}"})
        tar.write("../../two", {"png": png()})
        tar.write("three", {"txt": b"no image"})
        tar.finish()
    build_index(str(tmp_path / "s"))
    for text in (str(tmp_path / "s"), str(tmp_path / "s" / "train-*.tar"), str(tmp_path / "s" / "train-000000.tar")):
        found = pictures([text])
        assert len(found) == 3
        one, two, three = found
        assert one.below == "train-000000/one"
        assert one.name == f"{tmp_path}/s/train-000000.tar/one"
        assert bytes(one.members["json"]) == b"{}"
        assert bytes(one.data or b"") == png()
        assert two.below == "train-000000/%2e%2e/%2e%2e/two"
        assert three.data is None
        assert "no image member" in three.fault
    with pytest.raises(DataError, match="found a second pattern"):
        pictures([str(tmp_path / "s"), str(tmp_path / "s" / "train-000000.tar")])


def test_shards_beside_files_have_places_of_their_own(image: Callable[[str], str], tmp_path: Path) -> None:
    with TarWriter(tmp_path / "s" / "train-000000.tar") as tar:
        tar.write("x", {"png": png()})
        tar.finish()
    build_index(str(tmp_path / "s"))
    found = pictures([str(tmp_path / "s"), image("t/x.png")])
    assert sorted(one.below for one in found) == ["s/train-000000/x", "t/x.png"]


@given(st.lists(st.text("a./%:\\\0*", max_size=8), unique=True, max_size=20))
def test_safe_paths_stay_below_and_differ(paths: list[str]) -> None:
    found = [safe(path) for path in paths]
    assert len(set(found)) == len(paths)
    for path in found:
        assert os.path.normpath(os.path.join("/out", path)) == f"/out/{path}"
