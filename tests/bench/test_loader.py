from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.bench import loader, photos
from pipeline.shards.index import load_offsets
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A few of the photographs."""
    pytest.importorskip("skimage")
    monkeypatch.setitem(photos.SETS, "500x375", (375, 500, 24))
    monkeypatch.setattr(photos, "SHARDS", 2)
    return photos.ensure_photos(tmp_path, "500x375", workers=1)


def test_photographs_are_made_once_and_hold_detail(few, tmp_path: Path) -> None:
    assert few.num_samples == 24
    shard = few.shards[0]
    offsets = load_offsets(shard).tolist()
    _, members = read_sample(read_range(shard.url, offsets[0], offsets[1]))
    picture = cv2.imdecode(np.frombuffer(members["jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (375, 500, 3)
    assert 0.8 < 8 * few.sizes.sum() / few.num_samples / (375 * 500) < 5, "bits per pixel of photographs at quality 90"
    written = Path(shard.url).stat().st_mtime_ns
    assert photos.ensure_photos(tmp_path, "500x375", workers=1).digest == few.digest
    assert Path(shard.url).stat().st_mtime_ns == written


def test_every_loader_that_is_installed_is_measured(few) -> None:
    pytest.importorskip("webdataset")
    masks = photos.ensure_photos(Path(few.url), "500x375", workers=1, masks=True)
    result = loader.measure(few, masks, 32, workers=1, rounds=1, seconds=0.2)
    assert {"ours", "ours_with_masks", "ours_in_threads", "webdataset_pil", "webdataset_torchvision"} <= set(result)
    assert not result["skipped"]
    for name in set(result) - {"settings", "skipped"}:
        assert result[name]["images_per_s"] > 0
        assert result[name]["images_per_cpu_s"] > 0
    assert result["ours"]["ours_is_faster_by"] == {"images_per_s": 1.0, "images_per_cpu_s": 1.0}


def test_a_half_installed_loader_is_skipped_with_the_reason(
    few, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "nvidia" / "dali"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libnvimgcodec.so:\\n no such file')")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = loader.installed
    monkeypatch.setattr(loader, "installed", lambda package: package == "nvidia.dali" and found(package))
    result = loader.measure(few, None, 32, workers=1, rounds=2, seconds=0.1)
    assert result["skipped"] == {"dali_cpu": "ImportError: libnvimgcodec.so: no such file"}
    assert set(result) == {"ours", "ours_in_threads", "skipped", "settings"}
    assert len(result["ours"]["rounds"]) == 2
