from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from pipeline.shards.make._scenes_captions import NOTHING, NOUNS, caption, phrase, relations
from pipeline.shards.make._scenes_draw import COLOURS, Scene, SceneItem, draw_scene
from pipeline.shards.make._scenes_items import ItemPool

RELATIONS = {
    "left of": lambda a, b: a["x"] < b["x"],
    "right of": lambda a, b: a["x"] > b["x"],
    "above": lambda a, b: a["y"] < b["y"],
    "below": lambda a, b: a["y"] > b["y"],
    "in front of": lambda a, b: a["depth"] < b["depth"] and (a["box"] & b["box"]).any(),
}


def by_hand(*boxes: tuple[int, int, int, int]) -> Scene:
    """Red tops that fill boxes (left, top, width, height), from the farthest to the nearest."""
    owner = np.zeros((60, 80), np.uint8)
    items = []
    for number, (left, top, width, height) in enumerate(boxes, 1):
        owner[max(top, 0) : top + height, max(left, 0) : left + width] = number
        items.append(
            SceneItem(0, "red", 3000 - number, left, top, np.ones((height, width), bool), np.zeros((5, 2), int))
        )
    return Scene(np.zeros((60, 80, 3), np.uint8), owner, np.zeros((60, 80), np.uint16), items)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0, 10, 9, 9), (50, 0, 9, 9), {(0, "left of", 1), (1, "right of", 0)}),
        ((50, 10, 9, 9), (0, 0, 9, 9), {(1, "left of", 0), (0, "right of", 1)}),
        ((0, 0, 9, 9), (9, 40, 9, 9), {(0, "above", 1), (1, "below", 0)}),
        ((0, 0, 20, 9), (15, 2, 20, 9), {(0, "left of", 1), (1, "right of", 0), (1, "in front of", 0)}),
        ((-5, -3, 20, 9), (60, 30, 40, 50), {(0, "left of", 1), (1, "right of", 0)}),
        ((0, 0, 41, 41), (10, 10, 21, 21), {(1, "in front of", 0)}),  # one middle
    ],
)
def test_all_that_is_true_of_two_items(first, second, said) -> None:
    assert set(relations(by_hand(first, second), 0, 1)) == said


def test_articles_and_nouns() -> None:
    item = by_hand((0, 0, 9, 9)).items[0]
    assert phrase(item) == "a red top"
    assert phrase(SceneItem(1, "orange", *list(vars(item).values())[2:])) == "a pair of orange trousers"
    assert phrase(SceneItem(9, "orange", *list(vars(item).values())[2:])) == "an orange ankle boot"
    assert caption(by_hand((0, 0, 9, 9)), np.random.default_rng(0)) == "a red top"
    assert caption(by_hand(), np.random.default_rng(0)) == NOTHING


def test_captions_are_true(pool: ItemPool) -> None:
    phrases = {
        re.sub(r"^", "an " if text[0] in "aeiou" else "a ", text): (label, colour)
        for label, noun in enumerate(NOUNS)
        for colour in COLOURS
        for text in [noun.format(colour)]
    }
    found = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scene = draw_scene(pool, 80, 100, rng)
        text = caption(scene, rng)
        items = []
        for number, item in enumerate(scene.items, 1):
            rows, columns = np.nonzero(scene.owner == number)
            box = np.zeros((500, 500), bool)
            box[200 + item.top :, 200 + item.left :][: item.silhouette.shape[0], : item.silhouette.shape[1]] = True
            middle = {"x": columns.min() + columns.max(), "y": rows.min() + rows.max()}
            items.append({"is": (item.label, item.colour), "depth": item.depth_mm, "box": box, **middle})
        match = re.fullmatch(rf"(.+?) ({'|'.join(RELATIONS)}) (.+)", text)
        if match:
            subject, relation, other = match.groups()
            found.add(relation)
            assert any(
                (a["is"], b["is"]) == (phrases[subject], phrases[other]) and RELATIONS[relation](a, b)
                for a, b in itertools.permutations(items, 2)
            ), text
        else:
            assert (text == NOTHING and not items) or [one["is"] for one in items] == [phrases[text]]
    assert found == set(RELATIONS)
