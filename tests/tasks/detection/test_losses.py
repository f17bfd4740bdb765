"""The assignment of candidates to objects, and their losses."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou

from pipeline.models.drop_path import sample_keys
from pipeline.models.heads.pyramid.module import new_places
from pipeline.tasks.detection.objects import Objects, overlaps, to_corners, to_middles
from pipeline.tasks.detection.one_to_many import chosen_objects
from pipeline.tasks.detection.one_to_one import OneToOneLoss, matched, noisy

K = 3
GRID, LEVELS = (12, 12), (0, -1, -2)
COUNTS = (144, 36, 9)


def objects(counts: list[int], seed: int = 0, least: float = 0.1) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    middles = torch.cat(
        [
            torch.rand(total, 2, generator=generator) * 0.4 + 0.3,
            torch.rand(total, 2, generator=generator) * 0.4 + least,
        ],
        dim=1,
    )
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Objects(to_corners(middles), torch.randint(K, (total,), generator=generator), owners, counts)


def queries(samples: int, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(samples, count, 4, generator=generator) * 0.5 + 0.2
    return torch.cat([boxes, torch.randn(samples, count, K + 1, generator=generator)], dim=2)


def test_overlaps_are_torchvisions() -> None:
    one, other = objects([40], 1).corners, objects([40], 2).corners
    _, giou = overlaps(one, other)
    torch.testing.assert_close(giou, generalized_box_iou(one, other).diagonal())
    iou, giou = overlaps(one, one)
    torch.testing.assert_close(iou, torch.ones(40))
    torch.testing.assert_close(giou, torch.ones(40))
    torch.testing.assert_close(to_corners(to_middles(one)), one)


def test_pairs_are_the_cheapest_and_as_many_as_there_can_be() -> None:
    them, found = objects([2, 0, 3, 6]), queries(4, 4)
    pairs = matched(found, them)
    assert torch.bincount(pairs.samples, minlength=4).tolist() == [2, 0, 3, 4]
    for sample in (0, 2):
        rows = [row for row, owner in enumerate(them.owners.tolist()) if owner == sample]

        def cost(columns: tuple[int, ...], rows: list[int] = rows, sample: int = sample) -> float:
            total = 0.0
            for row, column in zip(rows, columns, strict=True):
                box, share = found[sample, column, :4], found[sample, column, 4:].softmax(0)
                _, giou = overlaps(to_corners(box), them.corners[row])
                total += float(5 * (box - to_middles(them.corners[row])).abs().sum() - 2 * giou)
                total -= float(share[them.labels[row]])
            return total

        best = min(permutations(range(4), len(rows)), key=cost)
        chosen = dict(zip(pairs.objects.tolist(), pairs.candidates.tolist(), strict=True))
        assert tuple(chosen[row] for row in rows) == best


def test_hundreds_of_objects_are_as_many_as_there_are_queries() -> None:
    learning, them = OneToOneLoss(K, 5, 2), objects([300, 2])
    assert learning.normalisers(them, torch.ones(2), (4, 4)).tolist() == [7, 14]
    assert learning.normalisers(them, torch.tensor([0.0, 1.0]), (4, 4)).tolist() == [2, 4]
    noise, known = noisy(them, torch.tensor([3, 4]), 2, K, 5)
    assert noise.boxes.shape == (2, 10, 4)
    assert torch.bincount(known.samples).tolist() == [10, 4]


def test_what_denoising_draws_is_a_matter_of_the_samples_key() -> None:
    keys = sample_keys(7, torch.arange(3))
    them = objects([2, 0, 4])
    together, known = noisy(them, keys, 3, K, 10)
    for sample, start in ((0, 0), (2, 2)):
        count = them.counts[sample]
        rows = slice(start, start + count)
        alone = Objects(them.corners[rows], them.labels[rows], torch.zeros(count, dtype=torch.int64), [count])
        noise, own = noisy(alone, keys[sample : sample + 1], 3, K, 10)
        torch.testing.assert_close(noise.boxes[0], together.boxes[sample, : 3 * count], atol=0, rtol=0)
        assert torch.equal(noise.labels[0], together.labels[sample, : 3 * count])
        assert torch.equal(own.objects + start, known.objects[known.samples == sample])
    assert together.groups[0].tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1, -1, -1, -1]
    assert (together.groups[1] == -1).all()
    again, _ = noisy(them, sample_keys(8, torch.arange(3)), 3, K, 10)
    assert not torch.equal(again.boxes, together.boxes)
    moved, _ = overlaps(to_corners(together.boxes[known.samples, known.candidates]), them.corners[known.objects])
    assert 0.15 < moved.min() < moved.mean() < 0.9
    empty, none = noisy(objects([0, 0]), keys[:2], 3, K, 10)
    assert empty.boxes.shape == (2, 0, 4)
    assert len(none.samples) == 0


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 1000))
def test_candidates_of_an_object_are_near_it_whatever_else_there_is(counts: list[int], seed: int) -> None:
    places, them = new_places(GRID, LEVELS, torch.device("cpu")), objects(counts, seed)
    chosen = chosen_objects(them, len(counts), places, COUNTS)
    assert chosen.shape == (len(counts), sum(COUNTS))
    for sample, (start, count) in enumerate(zip(them.starts, counts, strict=True)):
        found = chosen[sample][chosen[sample] >= 0]
        assert ((found >= start) & (found < start + count)).all()
        rows = slice(start, start + count)
        alone = Objects(them.corners[rows], them.labels[rows], torch.zeros(count, dtype=torch.int64), [count])
        expected = chosen_objects(alone, 1, places, COUNTS)[0]
        assert torch.equal(torch.where(expected >= 0, expected + start, -1), chosen[sample])
        if count == 1:
            inside = places[chosen[sample] >= 0, :2]
            corners = them.corners[start]
            assert len(inside)
            assert ((inside > corners[:2]) & (inside < corners[2:])).all()


def test_the_smallest_object_has_a_candidate_and_the_closest_of_two_takes_a_place() -> None:
    places = new_places(GRID, LEVELS, torch.device("cpu"))
    tiny = Objects(torch.tensor([[0.5, 0.5, 0.501, 0.501]]), torch.tensor([1]), torch.tensor([0]), [1])
    assert (chosen_objects(tiny, 1, places, COUNTS) == 0).sum() == 1
    around = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.3, 0.3, 0.7, 0.7]])
    both = Objects(around, torch.tensor([0, 1]), torch.tensor([0, 0]), [2])
    chosen = chosen_objects(both, 1, places, COUNTS)[0]
    assert {0, 1} <= set(chosen.tolist())


@pytest.mark.parametrize("copies", [0, 2])
def test_perfect_queries_cost_nothing(copies: int) -> None:
    them = objects([2, 1])
    found = torch.zeros(2, 4, 4 + K + 1)
    found[..., 2:4] = 0.1
    found[..., -1] = 20.0
    for row, (sample, place) in enumerate(((0, 1), (0, 3), (1, 0))):
        found[sample, place, :4] = to_middles(them.corners[row])
        found[sample, place, 4 + them.labels[row]] = 40.0
    terms = OneToOneLoss(K, 4, copies)._of_layer(found, them, torch.ones(2), None)
    assert terms.tolist() == pytest.approx([0.0] * (1 + bool(copies)), abs=1e-4)
