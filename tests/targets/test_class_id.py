from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.targets import TargetConfig
from pipeline.errors import DataError
from pipeline.targets.base import BadLabel, ClassMap, Mixing
from pipeline.targets.class_id import ClassId, ClassLabel

CLASSES = ClassMap(("cat", "dog", "kitten"), (1, 2, 1), 3)
TARGET = ClassId.build(("cls",), TargetConfig(), CLASSES)


@pytest.mark.parametrize(
    ("text", "label"),
    [(b"1", 2), (b" 002\n", 1), (b"\xef\xbb\xbf0\r\n", 1)],
)
def test_labels_are_decimal_numbers_and_mean_classes_of_the_stage(text: bytes, label: int) -> None:
    assert TARGET.decode({"cls": memoryview(text)}, None) == ClassLabel(label, label)


@pytest.mark.parametrize("text", [b"", b"-1", b"cat", "٣".encode(), b"1" + b" " * 64])
def test_what_is_no_number_is_a_bad_label(text: bytes) -> None:
    with pytest.raises(BadLabel, match=r"the label is .*, not a class number"):
        TARGET.decode({"cls": text}, None)
    with pytest.raises(BadLabel):
        TARGET.summarise({"cls": len(text)}, {"cls": text})


def test_none_is_a_bad_label_and_one_outside_the_classes_is_the_data_sets_fault() -> None:
    with pytest.raises(BadLabel, match=r"no label member \(looked for cls; found png, y\)"):
        TARGET.decode({"png": b"", "y": b"1"}, None)
    with pytest.raises(DataError, match="has label 3, but labels must be 0 to 2 for 3 classes"):
        TARGET.decode({"cls": b"3"}, None)
    assert ClassId.build(("cls",), TargetConfig(), None).decode({"cls": b"3"}, None).label == 3


def test_a_mixture_has_both_labels_and_their_share() -> None:
    mixed = TARGET.mix(ClassLabel(1, 1), ClassLabel(2, 2), Mixing(0.25))
    arrays = {name: np.zeros(2, field.dtype) for name, field in TARGET.fields((8, 8), evaluation=False).items()}
    TARGET.pack(mixed, arrays, 1)
    assert [array.tolist() for array in arrays.values()] == [[0, 1], [0, 2], [0, 0.25]]


def test_only_classes_that_are_not_the_stages_are_inputs() -> None:
    assert TARGET.inputs() == {"label_key": "cls", "labels": [1, 2, 1]}
    assert ClassId.build(("y",), TargetConfig(), ClassMap.same(("a", "b"))).inputs() == {"label_key": "y"}
    assert ClassId.build(("y",), TargetConfig(), ClassMap(("a",), (0,), 2)).inputs() == {
        "label_key": "y",
        "labels": [0],
    }
