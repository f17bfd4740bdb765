from pathlib import Path

import numpy as np
import pytest

from pipeline.report.files import as_time, read_arrays, read_lines, read_table


def test_lines_that_are_not_objects_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'3\n{"event": "a"}\n\xff\xfe\n\n{"event": "b"}\n')
    assert read_lines(path) == [{"event": "a"}, {"event": "b"}]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_times_are_seconds_or_iso_strings() -> None:
    assert as_time(0.0) == as_time("1970-01-01T00:00:00+00:00")
    assert as_time(float("nan")) is None
    assert as_time("yesterday") is None
    assert as_time(True) is None


@pytest.mark.parametrize("keep", [0, 400])
def test_torn_arrays_are_none(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "confusion.npz"
    np.savez_compressed(path, classes=np.arange(9999))
    assert read_arrays(path).keys() == {"classes"}
    path.write_bytes(path.read_bytes()[:keep])
    assert read_arrays(path) == {}


def test_damaged_arrays_are_none(tmp_path: Path) -> None:
    path = tmp_path / "confusion.npz"
    np.savez_compressed(path, classes=np.arange(9999))
    data = bytearray(path.read_bytes())
    data[200:300] = bytes(100)
    path.write_bytes(data)
    assert read_arrays(path) == {}


def test_a_torn_table_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "per_class.csv"
    assert read_table(path) == []
    path.write_text("model,class,right\na,cat,3\na,do")
    assert read_table(path) == [
        {"model": "a", "class": "cat", "right": "3"},
        {"model": "a", "class": "do", "right": ""},
    ]
