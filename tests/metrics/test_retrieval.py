from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.metrics import retrieval
from pipeline.metrics.retrieval import EmbeddedBatch, Pairs, Ranks, Retrieval, found_ranks, ranks


def unit(rows: Any) -> np.ndarray:
    array = np.array(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_a_rank_counts_the_wrong_that_are_as_near() -> None:
    queries, answers = unit([[1, 0], [0, 1], [1, 0]]), unit([[1, 0.1], [1, 0.2], [0, 1]])
    right = np.array([[2, 2], [0, 1], [1, 2], [0, 2]])
    assert ranks(queries, answers, right).tolist() == [1, 0, 2]


def plain_ranks(queries: np.ndarray, answers: np.ndarray, right: np.ndarray) -> list[int]:
    """One query and one pair at a time; whole numbers have exact products."""
    ranks = []
    for number, query in enumerate(queries):
        own = {answer for asking, answer in right.tolist() if asking == number}
        near = [float(np.dot(query, answer)) for answer in answers]
        best = max(near[answer] for answer in own)
        ranks.append(sum(value >= best for answer, value in enumerate(near) if answer not in own))
    return ranks


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (7, 128), (64, 64), (1024, 1 << 15)])
def test_blocks_give_the_plain_ranks_with_their_ties(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS", rows)
    monkeypatch.setattr(retrieval, "COLUMNS", columns)
    numbers = np.random.default_rng(0)
    queries, answers = (numbers.integers(-2, 3, (count, 4)).astype(np.float32) for count in (70, 301))
    right = np.stack([np.r_[np.arange(70), numbers.integers(0, 70, 231)], numbers.permutation(301)], axis=1)
    right = np.concatenate([right, right[:9]])  # a caption that an image has twice
    expected = plain_ranks(queries, answers, right)
    assert ranks(queries, answers, right).tolist() == expected
    assert len(set(expected)) > 20


@pytest.mark.parametrize("columns", [64, 1 << 15])
@pytest.mark.parametrize("count", [5, 7, 65, 301])
def test_equal_answers_tie_wherever_they_are(count: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS adds in another order at the edges of a matrix."""
    monkeypatch.setattr(retrieval, "COLUMNS", columns)
    numbers = np.random.default_rng(0)
    answers = np.repeat(unit(numbers.standard_normal((1, 768))), count, axis=0)
    for asked in (1, 5, 17):
        queries = unit(numbers.standard_normal((asked, 768)))
        right = np.stack([np.arange(asked), np.arange(asked)[::-1] % count], axis=1)
        right[0, 1] = count - 1
        assert ranks(queries, answers, right).tolist() == [count - 1] * asked


def test_a_model_that_makes_the_same_of_everything_finds_nothing() -> None:
    same = np.ones((30, 2), np.float32) / np.sqrt(2)
    numbers = np.arange(30)
    assert set(found_ranks(Pairs(numbers, same, numbers, same, numbers)).recalls().values()) == {0.0}


def test_equal_captions_are_one() -> None:
    """The caption of the first image is the third's too, and the second has two."""
    images = unit([[1, 0], [0, 1], [1, 0.1]])
    texts = unit([[1, 0], [0, 1], [1, -1], [1, 0]])
    owners, numbers = np.array([0, 1, 1, 2]), np.array([7, 8, 9, 7])
    found = found_ranks(Pairs(np.arange(3), images, owners, texts, numbers)).recalls()
    assert found["image_to_text_r1"] == 1
    assert found["text_to_image_r1"] == 0.75, "the caption (1, -1) is nearer to another image"


def test_ranks_are_merged_in_the_order_of_the_data(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator)
    counts = [1, 2, 1, 2, 1, 2]
    offsets = torch.tensor([0, *np.cumsum(counts)])
    numbers, weights = torch.arange(9) % 7, torch.tensor([1, 1, 1, 0, 1, 1.0])

    def collected(rows: range) -> Retrieval:
        start, stop = int(offsets[rows.start]), int(offsets[rows.stop])
        targets = {
            "all_tokens.offsets": offsets[rows.start : rows.stop + 1] - start,
            "all_captions": numbers[start:stop],
        }
        batch = SimpleNamespace(targets=targets, weights=weights[rows], slots=torch.tensor(list(rows)))
        found = Retrieval(lambda pairs, shared: float(pairs.images[:, 0] @ np.arange(1, len(pairs.slots) + 1)))
        found.add(EmbeddedBatch(images[rows], texts[start:stop], {}), batch)
        return found

    whole, second = collected(range(6)), collected(range(3, 6))
    second.merge(collected(range(3)).state())
    assert second.measures() == whole.measures()
    assert len(whole.state().images) == 5
    assert len(whole.state().texts) == 7
    second.write(tmp_path, "m", [])
    lines = (tmp_path / retrieval.FILE).read_text().splitlines()
    assert lines[0] == "model,query,k,recall"
    assert lines[1].startswith("m,image_to_text,1,0.")
    assert len(lines) == 7


def test_intervals_are_those_of_a_bootstrap_over_images() -> None:
    """Of two captions per image, one is found first and one is not; 0.8 of the images find theirs."""
    count = 100
    found = Ranks(
        np.arange(count), np.repeat(np.arange(count), 2), np.arange(count) // 80, np.tile([0, 1], count)
    ).intervals()
    low, high = found["image_to_text_r1"]
    assert 0.68 < low < 0.76 < 0.84 < high < 0.91  # 0.8 +- 1.96 * 0.04
    assert "text_to_image_r1" not in found, "half of every image's captions: no variation"
