from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.members import Keys, Unusable, split_name, split_plain_name

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a", "png")),
        ("d.e/a.seg.PNG", ("d.e/a", "seg.png")),
        ("./a.cls", ("./a", "cls")),
        ("README", None),
        (".hidden", None),
        ("__meta__/a.json", None),
        ("d/__x__.json", ("d/__x__", "json")),
        ("._a.png", None),
        ("./d/._a.png", None),
        ("__MACOSX/d/a.png", None),
        ("d/a.JPG", ("d/a", "jpg")),
    ],
)
def test_names_split_by_the_webdataset_rule(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == split_plain_name(name) == expected


@given(NAMES)
@settings(deadline=None)  # the first call imports webdataset
def test_names_split_as_webdataset_splits_them(name: str) -> None:
    tariterators = pytest.importorskip("webdataset.tariterators")
    key, extension = tariterators.base_plus_ext(name)
    assume("\n" not in name and not name.startswith("__"))
    assert split_name(name) == (None if key is None else (key, extension.lower()))


def test_the_first_image_key_that_is_there_wins() -> None:
    keys = Keys().override(" .TIF ; img.png")
    assert (keys.image, keys.image_key) == (("tif", "img.png"), "tif;img.png")
    assert keys.image_of({"img.png": 1, "tif": 2}) == 2


def test_what_is_lacking_is_named_with_what_is_there() -> None:
    with pytest.raises(Unusable, match=r"no image member \(looked for png, jpg, jpeg, webp; found tif, cls\)"):
        Keys().image_of({"tif": b"", "cls": b""})


@pytest.mark.parametrize("key", ["", "png;;jpg", ".", "a/b"])
def test_a_key_that_names_no_extension_is_refused(key: str) -> None:
    with pytest.raises(DataError, match="is not a member extension"):
        Keys().override(key)
