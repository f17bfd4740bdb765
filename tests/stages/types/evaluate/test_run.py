from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.metrics.pictures import save_picture
from pipeline.stages.types.evaluate.run import EvaluateStageRun


def test_all_files_of_an_evaluation_are_tracked(tmp_path: Path) -> None:
    run = object.__new__(EvaluateStageRun)
    run.folder = SimpleNamespace(path=tmp_path)
    for name in ("evaluation.json", "per_class.csv", "confusion.npz", "status.json"):
        (tmp_path / name).write_text("{}")
    save_picture(tmp_path, "one", np.zeros((2, 2), np.uint8), "title", "caption")
    names = {(path.name, folder) for path, folder in run.artifacts()}
    assert names == {
        ("evaluation.json", None),
        ("per_class.csv", None),
        ("confusion.npz", None),
        ("pictures", "pictures"),
    }
