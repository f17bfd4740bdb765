from __future__ import annotations

import pytest

from pipeline.errors import ModelError
from pipeline.tasks.distillation.classes import shared_classes


def test_classes_are_found_by_their_names() -> None:
    assert shared_classes(["cat", "dog"], ["dog", "emu", "cat"], 3) == [2, 0]


def test_without_names_the_numbers_are_the_same() -> None:
    assert shared_classes(["cat", "dog"], None, 2) == [0, 1]
    with pytest.raises(ModelError, match=r"^its 3 classes have no names, but the student has 2 classes;"):
        shared_classes(["cat", "dog"], None, 3)


def test_a_class_that_the_teacher_does_not_know_is_named() -> None:
    with pytest.raises(ModelError, match=r"does not know the class 'dog' \(1 of 2 are missing\); .* are 'cat', 'emu';"):
        shared_classes(["cat", "dog"], ["cat", "emu"], 2)
