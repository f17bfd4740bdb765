from __future__ import annotations

from pipeline.stages.temperature import TemperatureWatch


def test_tells_of_a_bound_and_of_its_end_once() -> None:
    told: list[str] = []
    watch = TemperatureWatch(told.append)
    steps = [(40.0, 0.0), (99.0, 0.3), (100.0, 1.0), (90.0, 0.0), (80.0, 0.0)]
    rows = [{"step": 10 * n, "train/scale": s, "train/scale_at_bound": b} for n, (s, b) in enumerate(steps)]
    rows.insert(1, {"step": 5, "train/loss": 1.0})
    for row in rows:
        watch.look(row)
    assert [sentence.partition(";")[0] for sentence in told] == [
        "the learned scale has reached a bound at step 10, at 99",
        "the learned scale has left its bound at step 30, for 90",
    ]
