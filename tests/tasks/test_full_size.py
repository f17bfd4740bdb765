import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import SQUASH, PlainConfig
from pipeline.images.plain import plain, spans
from pipeline.tasks import _full_size
from pipeline.tasks._full_size import axis_weights, class_map, full_size_logits

HOWS = [
    SQUASH,
    PlainConfig(resize="shorter", crop_pct=0.875, interpolation="bilinear"),
    PlainConfig(resize="pad", interpolation="bicubic"),
    PlainConfig(resize="pad"),
]


def logits(classes: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(classes, *grid, generator=torch.Generator().manual_seed(seed))


def test_a_squashed_image_gets_what_torch_interpolates() -> None:
    small = logits(3, (6, 8))
    bands = dict(full_size_logits(small, (50, 31), (48, 64), SQUASH))
    expected = F.interpolate(small[None], (50, 31), mode="bilinear")[0]
    torch.testing.assert_close(torch.cat(list(bands.values()), dim=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("full", [(50, 31), (31, 50), (200, 120), (64, 64)])
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.resize}-{how.interpolation}")
def test_what_is_seen_of_a_class_map_comes_back_to_its_place(how: PlainConfig, full: tuple[int, int]) -> None:
    """A picture whose colours are its classes, seen by a model that reads colours without error, is labelled right."""
    view = (64, 64)
    rows, columns = np.mgrid[: full[0], : full[1]]
    labels = (2 * rows // full[0] + 2 * (2 * columns // full[1])).astype(np.uint8)  # four quarters
    picture = np.repeat((labels * 60)[..., None], 3, axis=2).astype(np.uint8)
    seen = plain(picture, view, (255, 255, 255), how)[:, :, 0]
    perfect = torch.from_numpy(np.stack([-np.abs(seen - 60.0 * number) for number in range(4)])).float()
    found = class_map(perfect, full, view, how).numpy()
    down, across = spans(full, view, how)
    # Beside an edge one pixel of the view is blurred; that much of the image may go either way.
    blur = max((axis.stop - axis.start) / axis.length for axis in (down, across)) * 1.5 + 1
    edge = (np.abs(rows + 0.5 - full[0] / 2) < blur) | (np.abs(columns + 0.5 - full[1] / 2) < blur)
    assert (found == labels)[~edge].all()
    assert (~edge).mean() > 0.5


def test_a_class_moves_with_its_place_to_a_fraction_of_a_pixel() -> None:
    """Pixel-sized cells whose logits rise along an axis are read back as that axis' coordinates."""
    how, full, view = HOWS[1], (90, 150), (64, 64)
    ramp = (torch.arange(64) + 0.5).expand(1, 64, 64)  # column's coordinate in the view
    ((_, found),) = full_size_logits(ramp, full, view, how)
    _, across = spans(full, view, how)
    centres = np.arange(150) + 0.5
    expected = across.first + (centres - across.start) * across.length / (across.stop - across.start)
    np.testing.assert_allclose(found[0, 0].numpy(), expected.clip(0.5, 63.5), atol=1e-4)


def test_bands_hold_few_values_and_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    small = logits(5, (4, 4))
    ((first, whole),) = full_size_logits(small, (40, 30), (32, 32), SQUASH)
    monkeypatch.setattr(_full_size, "MOST_VALUES", 5 * 30 * 7)
    bands = list(full_size_logits(small, (40, 30), (32, 32), SQUASH))
    assert first == 0
    assert [start for start, _ in bands] == [0, 7, 14, 21, 28, 35]
    assert max(band.numel() for _, band in bands) <= 5 * 30 * 7
    torch.testing.assert_close(torch.cat([band for _, band in bands], dim=1), whole)
    assert torch.equal(class_map(small, (40, 30), (32, 32), SQUASH), whole.max(dim=0).indices)


@given(st.integers(1, 300), st.integers(1, 20), st.sampled_from([1, 2, 7, 16]), st.sampled_from(HOWS))
def test_shares_of_the_cells_sum_to_one(full: int, cells: int, patch: int, how: PlainConfig) -> None:
    side = cells * patch
    weights = axis_weights(full, spans((full, 77), (side, 64), how)[0], side, cells)
    assert weights.shape == (full, cells)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert ((weights > 0).sum(axis=1) <= 2).all()
