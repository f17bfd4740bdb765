from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import Preprocess
from pipeline.models.foreign_config import MEAN, STD, foreign_class_names, hugging_face_normalisation, normalisation

transformers = pytest.importorskip("transformers")

OFFSET = {"rescale_offset": True, "include_top": False}  # as ViViT's `offset`, without EfficientNet's second division
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        ("ViTImageProcessor", {}),
        ("BitImageProcessor", {}),
        ("ViTImageProcessor", {"do_normalize": False}),
        (
            "ViTImageProcessor",
            {"rescale_factor": 1 / 127.5, "image_mean": [0.9, 1.0, 1.1], "image_std": [1.0, 0.5, 2.0]},
        ),
        (
            "ViTImageProcessor",
            {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
        ),
        ("ViTImageProcessor", {"image_mean": 0.25, "image_std": 0.5}),
        ("EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, **OFFSET}),
        ("EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, **OFFSET, "do_normalize": False}),
    ],
)
def test_pixels_become_what_transformers_makes_of_them(processor: str, settings: dict[str, Any]) -> None:
    theirs = getattr(transformers, processor)(**settings, do_resize=False, do_center_crop=False)
    given = theirs(IMAGE, return_tensors="pt")["pixel_values"]
    written = theirs.to_dict()
    mean, std = hugging_face_normalisation({**written, "image_processor_type": processor, **settings}, 3)
    ours = Preprocess(mean, std, 3, (8, 8)).normalise(torch.from_numpy(IMAGE).permute(2, 0, 1)[None])
    torch.testing.assert_close(ours, given.float(), atol=1e-4, rtol=1e-4)


def test_what_a_preprocessor_leaves_out_is_what_transformers_takes() -> None:
    assert hugging_face_normalisation({}, 3) == (MEAN, STD)
    for processor in ("ViTImageProcessor", "BitImageProcessor"):
        theirs = getattr(transformers, processor)()
        mean, std = hugging_face_normalisation({"image_processor_type": processor}, 3)
        assert (*mean, *std) == pytest.approx((*theirs.image_mean, *theirs.image_std))


def test_images_that_come_from_0_to_1_are_not_rescaled_again() -> None:
    found = hugging_face_normalisation({"do_rescale": False, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 3)
    assert found == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"do_rescale": False, "do_normalize": False}, "do_rescale and do_normalize are false"),
        ({"image_mean": "0.5"}, "image_mean: found '0.5', expected a number"),
        ({"image_std": []}, "image_std: found an empty list"),
        ({"rescale_factor": 0}, "rescale_factor: found 0, expected a number above 0"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "the normalisation's mean: found 123.7, but pixel values are between"),
        ({"image_std": [0.2, 0.0, 0.2]}, "the normalisation's std: found 0, expected values above 0"),
    ],
)
def test_a_preprocessor_that_does_not_tell_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError) as caught:
        hugging_face_normalisation(settings, 3)
    assert str(caught.value).startswith(fault)


def test_single_numbers_and_other_channels() -> None:
    assert normalisation(0.0, 1.0, 3) == ((0.0,) * 3, (1.0,) * 3)
    (mean,), (std,) = normalisation([0.2, 0.4, 0.6], [0.1, 0.2, 0.3], 1)
    assert (mean, std) == pytest.approx((0.4, 0.2))


def test_labels_stand_by_their_numbers() -> None:
    labels = {"10": "k", **{str(n): letter for n, letter in enumerate("abcdefghij")}}
    assert foreign_class_names(labels, {letter: n for n, letter in enumerate("abcdefghijk")}, 11) == list("abcdefghijk")
    assert foreign_class_names({1: "dog", 0: "\ufeffcat "}, {"cat": "0"}, 2) == ["cat", "dog"]
    assert foreign_class_names(["cat", "dog"], None, 2) == ["cat", "dog"]
    assert foreign_class_names({"0": "cat"}, None, 2) is None
    assert foreign_class_names(None, None, 2) is None


def test_labels_of_several_classes_are_told_apart() -> None:
    assert foreign_class_names({"0": "crane", "1": "heron", "2": "crane"}, {"crane": 2, "heron": 1}, 3) == [
        "crane (0)",
        "heron",
        "crane (2)",
    ]


@pytest.mark.parametrize(
    ("labels", "named", "fault"),
    [
        ({"0": "cat", "2": "dog"}, None, "id2label: found no name for class 1 of 0 to 1"),
        ({"cat": "0", "dog": "1"}, None, "id2label: found 'cat', expected a class number"),
        (
            {"0": "cat", "1": "dog"},
            {"cat": 1, "dog": 0},
            "label2id: gives 'cat' the number 1, which is 'dog' in id2label",
        ),
        (
            {"0": "cat", "1": "dog"},
            ["cat", "dog"],
            "label2id: found ['cat', 'dog'], expected an object that maps names ",
        ),
        ({"0": "cat", "1": "dog"}, {"cat": float("inf")}, "label2id: found inf, expected a class number"),
    ],
)
def test_labels_that_contradict_are_refused(labels: dict[str, str], named: Any, fault: str) -> None:
    with pytest.raises(ModelError) as caught:
        foreign_class_names(labels, named, 2)
    assert str(caught.value).startswith(fault)
