import pytest

from pipeline.metrics.accuracy import ACCURACY
from pipeline.report.text import count_text, duration_text, shape_text, size_text, value_text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12"), (215_400, "215 k"), (5_717_416, "5.72 M"), (1.0e9, "1 B")])
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


def test_sizes_shapes_and_shares() -> None:
    assert (size_text(28), size_text((28, 28)), size_text((28, 56))) == ("28", "28", "28\N{MULTIPLICATION SIGN}56")
    assert shape_text((1, 50, 64)) == "1\N{MULTIPLICATION SIGN}50\N{MULTIPLICATION SIGN}64"
    assert shape_text(None) == value_text(ACCURACY, None) == "\N{EN DASH}"
    assert value_text(ACCURACY, 0.8137) == "81.4 %"
