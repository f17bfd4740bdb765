from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import PlainConfig
from pipeline.metrics.pictures import read_pictures
from pipeline.models.bundle import Preprocess
from pipeline.tasks.base import Compared, TaskModule
from pipeline.tasks.classification.module import Classification
from pipeline.tasks.examples import MOST, Examples, examples

SIZE = (20, 30)
CLASSES = ["ant", "bee", "cat"]
GREY = Preprocess((0.5,), (0.5,), 1, (8, 8))


class Told:
    """A task whose predictions are its mistakes."""

    preprocess = SimpleNamespace(eval=PlainConfig())

    def mistakes(self, predicted: torch.Tensor, batch: Any) -> torch.Tensor:
        return predicted

    def compared(self, predicted: torch.Tensor, batch: Any, row: int) -> Compared:
        return Compared(SIZE, 0, 255, f"{predicted[row]:.3f}")

    def draw(self, picture: np.ndarray, value: int) -> np.ndarray:
        picture[:] = value
        return picture


def batch(slots: list[int], weights: list[float] | None = None) -> Any:
    count = len(slots)
    return SimpleNamespace(
        slots=torch.tensor(slots),
        weights=torch.tensor(weights or [1.0] * count),
        views={"image": torch.full((count, 1, 8, 8), 90, dtype=torch.uint8)},
        targets={},
    )


def shown(collector: Examples, folder: Path) -> list[tuple[str, str]]:
    collector.write(folder, "small", [])
    return [(one.title, one.caption) for _, one in read_pictures(folder)]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=60), st.integers(1, 4), st.data())
def test_the_worst_are_the_same_on_any_number_of_ranks(mistakes: list[float], ranks: int, data: Any) -> None:
    owners = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(mistakes), max_size=len(mistakes)))
    collectors = [Examples(Told(), first=True) for _ in range(ranks)]  # type: ignore[arg-type]
    for slot, (mistake, owner) in enumerate(zip(mistakes, owners, strict=True)):
        collectors[owner].add(torch.tensor([mistake]), batch([slot]))
    for other in collectors[1:]:
        collectors[0].merge(other.state())
    first, worst = collectors[0].state()
    assert sorted(first) == list(range(min(len(mistakes), MOST)))
    expected = sorted(((mistake, -slot) for slot, mistake in enumerate(mistakes) if mistake), reverse=True)[:MOST]
    found = sorted(((one.mistake, one.place) for one in worst), reverse=True)
    assert [slot for _, slot in found] == [slot for _, slot in expected]


def test_pictures_are_the_image_the_truth_and_the_prediction(tmp_path: Path) -> None:
    collector = Examples(Told(), first=False)  # type: ignore[arg-type]
    collector.add(torch.tensor([0.0, 0.5, 0.75, 1.0]), batch([0, 1, 2, -1], [1, 1, 1, 1]))
    collector.add(torch.tensor([0.9, 0.25]), batch([3, 4], [0, 1]))
    title = "Worst mistakes by small: image, truth, prediction"
    assert shown(collector, tmp_path) == [
        (title, "image 2: 0.750"),
        (title, "image 1: 0.500"),
        (title, "image 4: 0.250"),
    ]
    picture = collector.state()[1][0].picture
    third = picture.shape[1] // 3
    assert [int(picture[9, third // 2 + part * third, 0]) for part in range(3)] == [90, 0, 255]


def test_a_classifier_shows_what_it_took_for_what(tmp_path: Path) -> None:
    task = Classification(torch.nn.Identity(), GREY, CLASSES, 0)  # type: ignore[arg-type]
    logits = torch.tensor([[0.0, 4.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    one = batch([10, 11, 12])
    one.targets = {"label": torch.tensor([1, 2, 0])}
    mistakes = task.mistakes(logits, one)
    assert mistakes[0] == 0
    assert mistakes[1:].tolist() == pytest.approx([5.01, 9.0], abs=0.01)
    (collector,) = examples(task)
    collector.add(logits, one)
    assert [caption for _, caption in shown(collector, tmp_path)] == [
        "image 12: ant, predicted as cat (100%)",
        "image 11: cat, predicted as ant (99%)",
    ]


def test_a_task_that_judges_no_sample_shows_none() -> None:
    class Silent(Classification):
        mistakes = TaskModule.mistakes

    assert examples(Silent(torch.nn.Identity(), GREY, CLASSES, 0)) == []  # type: ignore[arg-type]
