from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.targets import default_members, target_kind, target_kinds
from pipeline.targets.base import total


def test_every_kind_is_found_by_the_name_of_its_file() -> None:
    assert {"class_id", "mask"} <= set(target_kinds())
    assert all(target_kind(kind).kind == kind for kind in target_kinds())


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"found 'masks', which is not a kind of target; .*class_id, .*mask"):
        target_kind("masks")


def test_what_a_shard_holds_says_which_labels_it_has() -> None:
    assert default_members({"png", "seg.png"}) == {"mask": ("seg.png",)}
    assert default_members({"png", "cls", "seg.png"}) == {"class_id": ("cls",), "mask": ("seg.png",)}
    assert default_members({"png"}) == {}


def test_columns_add_up() -> None:
    columns = {"bad": [1, 0, 2], "low": [3, None, 1], "high": [None, None, None]}
    assert total(columns, {"bad": "sum", "low": "min", "high": "max"}) == {"bad": 3, "low": 1, "high": None}


def test_kinds_need_no_torch() -> None:
    code = (
        "import sys, pipeline.targets as t; [t.target_kind(k) for k in t.target_kinds()]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
