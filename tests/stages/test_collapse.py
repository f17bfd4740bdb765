from __future__ import annotations

from pipeline.stages.collapse import CollapseWatch


def test_tells_of_a_collapse_and_of_its_end_once() -> None:
    told: list[str] = []
    watch = CollapseWatch(told.append)
    ranks = [30.0, 1.4, 1.2, 8.0, 9.0]
    rows = [{"step": 10 * number, "train/effective_rank": rank} for number, rank in enumerate(ranks)]
    for row in [*rows[:2], {"step": 15, "train/lr": 0.0}, *rows[2:]]:
        watch.look(row)
    assert [sentence.partition(":")[0] for sentence in told] == [
        "the embeddings have collapsed at step 10",
        "the embeddings are no longer collapsed at step 30",
    ]
    assert "their effective rank is 1.40" in told[0]


def test_validation_is_looked_at_too() -> None:
    told: list[str] = []
    CollapseWatch(told.append).look({"step": 3, "val/effective_rank": 1.0})
    assert len(told) == 1
