"""Captions of scenes: two items with their colours, and their spatial relation."""

from __future__ import annotations

import numpy as np

from pipeline.shards.make._scenes_draw import Scene, SceneItem, overlapping_slices

# In the order of Fashion-MNIST's classes.
NOUNS = (
    "{} top",
    "pair of {} trousers",
    "{} pullover",
    "{} dress",
    "{} coat",
    "{} sandal",
    "{} shirt",
    "{} sneaker",
    "{} bag",
    "{} ankle boot",
)
NOTHING = "an empty wall"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true statement about the two most visible items, or about the only one."""
    seen = np.bincount(scene.owner.ravel(), minlength=len(scene.items) + 1)[1:]
    largest = [int(number) for number in np.argsort(-seen, kind="stable")[:2]]
    if not largest:
        return NOTHING
    statements = relations(scene, *largest) if len(largest) == 2 else []
    if not statements:
        return phrase(scene.items[largest[0]])
    subject, relation, other = statements[int(rng.integers(len(statements)))]
    return f"{phrase(scene.items[subject])} {relation} {phrase(scene.items[other])}"


def relations(scene: Scene, first: int, second: int) -> list[tuple[int, str, int]]:
    """All true relations of two items of a scene, as (item, relation, other item).

    Beside and above compare the centres of their visible parts, along the axis on which these are farther apart; an
    item is in front of another if their silhouettes overlap and it is nearer.
    """
    statements = []
    (x1, y1), (x2, y2) = middle(scene, first), middle(scene, second)
    if abs(x1 - x2) > abs(y1 - y2):
        left, right = (first, second) if x1 < x2 else (second, first)
        statements += [(left, "left of", right), (right, "right of", left)]
    elif y1 != y2:
        upper, lower = (first, second) if y1 < y2 else (second, first)
        statements += [(upper, "above", lower), (lower, "below", upper)]
    farther, nearer = sorted((first, second))
    if (on_picture(scene, farther) & on_picture(scene, nearer)).any():
        statements.append((nearer, "in front of", farther))
    return statements


def phrase(item: SceneItem) -> str:
    """Such as "a red ankle boot"."""
    text = NOUNS[item.label].format(item.colour)
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def middle(scene: Scene, number: int) -> tuple[float, float]:
    """(x, y) of the centre of the box around the visible part of an item."""
    rows, columns = np.nonzero(scene.owner == number + 1)
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


def on_picture(scene: Scene, number: int) -> np.ndarray:
    """Where an item's silhouette lies, hidden or not, bool [H, W]."""
    item = scene.items[number]
    inside, cropped = overlapping_slices(scene.owner.shape, item.silhouette.shape, item.top, item.left)
    covered = np.zeros(scene.owner.shape, bool)
    covered[inside] = item.silhouette[cropped]
    return covered
