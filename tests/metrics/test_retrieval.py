from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.metrics import retrieval
from pipeline.metrics.retrieval import EmbeddedBatch, Pairs, Retrieval, ranks, recalls


def unit(rows: list[list[float]]) -> np.ndarray:
    array = np.array(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_a_rank_counts_the_wrong_that_are_as_near() -> None:
    queries, answers = unit([[1, 0], [0, 1], [1, 0]]), unit([[1, 0.1], [1, 0.2], [0, 1]])
    right = np.array([[2, 2], [0, 1], [1, 2], [0, 2]])
    assert ranks(queries, answers, right).tolist() == [1, 0, 2]


@pytest.mark.parametrize("rows", [1, 2, 1024])
def test_queries_compared_in_pieces_give_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS", rows)
    test_a_rank_counts_the_wrong_that_are_as_near()


def test_a_model_that_makes_the_same_of_everything_finds_nothing() -> None:
    same = np.ones((30, 2), np.float32) / np.sqrt(2)
    numbers = np.arange(30)
    assert set(recalls(Pairs(numbers, same, numbers, same, numbers)).values()) == {0.0}


def test_equal_captions_are_one() -> None:
    """The caption of the first image is the third's too, and the second has two."""
    images = unit([[1, 0], [0, 1], [1, 0.1]])
    texts = unit([[1, 0], [0, 1], [1, -1], [1, 0]])
    owners, numbers = np.array([0, 1, 1, 2]), np.array([7, 8, 9, 7])
    found = recalls(Pairs(np.arange(3), images, owners, texts, numbers))
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
