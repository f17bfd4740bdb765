from __future__ import annotations

import numpy as np
import pytest

from pipeline.images.drawing import write_lines


@pytest.mark.parametrize("size", [(28, 28), (400, 300), (9, 500), (3, 2)])
def test_words_stay_in_a_picture_of_the_same_size(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 200, np.uint8)
    before = picture.copy()
    written = write_lines(picture, ["an ankle boot 93%", "a bag"], [(255, 0, 0), (0, 0, 255)])
    assert written.shape == picture.shape
    assert written.dtype == np.uint8
    assert (picture == before).all()
    assert (written != before).any()


def test_lines_leave_half_of_the_picture_alone() -> None:
    picture = np.full((100, 400, 3), 200, np.uint8)
    written = write_lines(picture, ["one"] * 50)
    assert (written[60:] == 200).all()
    assert (written[:40] != 200).any()


def test_each_line_has_its_colour() -> None:
    picture = np.zeros((200, 200, 3), np.uint8)
    written = write_lines(picture, ["a", "b"], [(255, 0, 0), (0, 0, 255)])
    red, blue = ((written == color).all(axis=2).nonzero()[0].mean() for color in ((255, 0, 0), (0, 0, 255)))
    assert red < blue


def test_without_lines_nothing_is_written() -> None:
    picture = np.full((20, 20, 3), 7, np.uint8)
    assert (write_lines(picture, []) == picture).all()
