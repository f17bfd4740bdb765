from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.make.fractals import FILL_RATE, draw_attractor, fractal_class, make, shaken
from pipeline.shards.samples import shard_samples
from pipeline.shards.verify import verify_shards


def images(index) -> list[np.ndarray]:
    found = (members["png"] for shard in index.shards for _, _, members, _ in shard_samples(shard))
    return [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in found]


def test_any_number_of_labelled_images_at_any_size(tmp_path: Path) -> None:
    index = make(tmp_path, classes=3, per_class=4, size=50, samples_per_shard=5, workers=1)
    assert (index.num_samples, index.counts.tolist(), index.totals["class_id"]["high"]) == (12, [5, 5, 2], 2)
    assert index.classes == {"class_id": ["fractal-0000", "fractal-0001", "fractal-0002"]}
    assert list(verify_shards(str(tmp_path), workers=1)) == []
    assert all(image.shape == (50, 50, 3) and (image > 0).mean() > 0.02 for image in images(index))


def test_seed_and_label_decide_and_instances_differ(tmp_path: Path) -> None:
    settings = {"classes": 2, "per_class": 2, "size": 32, "channels": 1, "workers": 1}
    for name in "abc":
        (tmp_path / name).mkdir()
    first, again, other = (make(tmp_path / n, seed=s, **settings) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert first.digest == again.digest != other.digest
    assert len({image.tobytes() for image in images(first)}) == 4


def test_a_second_call_keeps_what_is_there(tmp_path: Path) -> None:
    settings = {"classes": 2, "per_class": 4, "size": 16, "samples_per_shard": 4, "workers": 1}
    digest = make(tmp_path, **settings).digest
    (tmp_path / "train-000001.tar").unlink()
    written = (tmp_path / "train-000000.tar").stat().st_mtime_ns
    assert make(tmp_path, **settings).digest == digest
    assert (tmp_path / "train-000000.tar").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="made with another size"):
        make(tmp_path, **settings | {"size": 17})


def test_classes_fill_the_picture_and_are_bounded() -> None:
    for label in range(10):
        maps = fractal_class(0, label)
        rng = np.random.default_rng(label)
        assert (draw_attractor(maps, 32, 1, rng) > 0).mean() >= FILL_RATE * 0.8
        assert np.isfinite(draw_attractor(shaken(maps, rng), 32, 1, rng)).all()


@pytest.mark.parametrize("settings", [{"classes": 0}, {"size": 0}, {"channels": 2}, {"prefix": "a/b"}])
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(DataError, match="expected numbers above 0"):
        make(tmp_path, **settings)
