from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tasks.clip import losses
from pipeline.tasks.clip.losses import LOSSES, EmbeddedPairs, contrastive
from pipeline.tasks.ranks import ALONE

BIAS = torch.tensor(-3.0)
SCALE = torch.tensor(7.0)


def pairs(captions: list[int], weights: list[float] | None = None) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(len(captions), 5, generator=generator), dim=1) for _ in range(2))
    own = {caption: texts[captions.index(caption)] for caption in captions}
    texts = torch.stack([own[caption] for caption in captions])
    of = torch.ones(len(captions)) if weights is None else torch.tensor(weights, dtype=torch.float32)
    return EmbeddedPairs(images.requires_grad_(), texts.requires_grad_(), torch.tensor(captions), of)


def mean_loss(name: str, given: EmbeddedPairs) -> Tensor:
    return contrastive(LOSSES[name], given, SCALE, BIAS, ALONE)


def test_without_equal_captions_they_are_the_papers() -> None:
    given = pairs([0, 1, 2, 3])
    logits = SCALE * given.images @ given.texts.T
    labels = torch.arange(4)
    softmax = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(mean_loss("softmax", given), softmax)
    sigmoid = -F.logsigmoid((2 * torch.eye(4) - 1) * (logits + BIAS)).sum() / 4
    torch.testing.assert_close(mean_loss("sigmoid", given), sigmoid)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_captions_are_no_negatives(name: str) -> None:
    """Two images with equal captions are not negatives of each other."""
    given = pairs([0, 1, 0])
    parts = [EmbeddedPairs(*(values[rows] for values in given)) for rows in ([0, 1], [1, 2])]
    first, second = (contrastive(LOSSES[name], part, SCALE, BIAS, ALONE) for part in parts)
    alone = EmbeddedPairs(given.images[[0, 2]], given.texts[[0, 2]], given.captions[[0, 2]], given.weights[[0, 2]])
    found = torch.autograd.grad(mean_loss(name, alone), alone.images, allow_unused=True)[0]
    if name == "softmax":
        assert found is None or not found.any(), "nothing to be told from"
    third = mean_loss(name, given) * 3
    assert third < 2 * (first + second), "the pair of equals adds nothing"


@pytest.mark.parametrize("name", LOSSES)
def test_samples_of_weight_0_are_nothing(name: str) -> None:
    given = pairs([0, 1, 2, 3, 1], [1, 1, 0, 1, 0])
    kept = EmbeddedPairs(*(values[[0, 1, 3]] for values in given))
    expected = mean_loss(name, kept)
    torch.testing.assert_close(mean_loss(name, given), expected)
    wanted, found = (torch.autograd.grad(loss, given.images)[0] for loss in (expected, mean_loss(name, given)))
    torch.testing.assert_close(found, wanted)
    assert not found[[2, 4]].any()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_compared_in_pieces_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = pairs([0, 1, 2, 3, 1, 4, 5])
    whole = mean_loss(name, given)
    expected = torch.autograd.grad(whole, [given.images, given.texts])
    monkeypatch.setattr(losses, "AT_ONCE", 15)
    pieces = mean_loss(name, given)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, [given.images, given.texts]), expected)


def test_a_batch_without_a_good_pair_has_no_loss() -> None:
    assert mean_loss("softmax", pairs([0, 1], [0, 0])) == 0
