from __future__ import annotations

from pipeline.cli.evaluate import table


def test_one_row_per_model_and_what_was_left_out() -> None:
    figures = {"accuracy": 0.5, "top5": 0.875, "loss": 1.25, "samples": 1234, "bad_samples": 2}
    rows = table({"models": {"runs/a": figures, "b": figures}, "bad_samples": {"bad": 2}}).splitlines()
    assert [row.split() for row in rows] == [
        ["model", "accuracy", "top-5", "loss", "samples"],
        ["runs/a", "50.00%", "87.50%", "1.2500", "1,234"],
        ["b", "50.00%", "87.50%", "1.2500", "1,234"],
        ["left", "out:", "2", "bad", "samples"],
    ]
    assert len({len(row) for row in rows[:3]}) == 1
