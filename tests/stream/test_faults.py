"""All faults that data can have: bad samples are recorded with their reason, and good ones are read once."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.data import AugmentConfig
from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index_file import load_index
from pipeline.shards.write import END_OF_ARCHIVE, tar_member

NAME = "s"
PIXELS = np.add.outer(np.arange(12) * 9, np.arange(16) * 6).astype(np.uint8)


def image(format: str = "PNG", mode: str = "L", **options: object) -> bytes:
    file = io.BytesIO()
    picture = (
        Image.fromarray(PIXELS.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    )
    picture.save(file, format, **options)
    return file.getvalue()


def absurd() -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image("JPEG", "RGB", exif=exif)


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, ("/tmp/minivit-was-unpickled",)


GOOD, WHOLE, FRAME = {"cls": b"3"}, image(), Image.new("RGB", (16, 12))


def good(count: int) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"z{i}", {"png": WHOLE, **GOOD}) for i in range(count)]


# Members of one sample, and what the manifest must say of it; None where it is a good one.
FAULTS: dict[str, tuple[dict[str, bytes], str | None]] = {
    "missing label": ({"png": WHOLE}, "no label member (looked for cls; found png)"),
    "label that is not a number": ({"png": WHOLE, "cls": b"cat"}, "the label is 'cat', not a class number"),
    "negative label": ({"png": WHOLE, "cls": b"-1"}, "the label is '-1', not a class number"),
    "missing image": ({"txt": b"words", **GOOD}, "no image member (looked for png, jpg, jpeg, webp; found txt, cls)"),
    "zero-byte image": ({"png": b"", **GOOD}, "the image is empty"),
    "truncated PNG": ({"png": WHOLE[: len(WHOLE) // 2], **GOOD}, "the image cannot be decoded"),
    "truncated JPEG": ({"jpg": image("JPEG")[:-8], **GOOD}, "the image cannot be decoded"),
    "no image at all": ({"jpg": b"<html>404</html>", **GOOD}, "no readable image header"),
    "header of 50,000 x 50,000": ({"png": absurd(), **GOOD}, "the image has 50000 x 50000 pixels, more than"),
    "pickle for an image": ({"png": pickle.dumps(Trap()), **GOOD}, "no readable image header"),
    "pickle for a label": ({"png": WHOLE, "cls": pickle.dumps(Trap())}, "not a class number"),
    "pickled member": ({"png": WHOLE, "pyd": pickle.dumps(Trap()), **GOOD}, None),
    "CMYK": ({"jpg": image("JPEG", "CMYK"), **GOOD}, None),
    "16 bits": ({"png": image("PNG", "I;16"), **GOOD}, None),
    "palette": ({"png": image("PNG", "P"), **GOOD}, None),
    "transparent": ({"png": image("PNG", "RGBA"), **GOOD}, None),
    "WebP": ({"webp": image("WEBP", "RGB"), **GOOD}, None),
    "animated": (
        {"webp": image("WEBP", "RGB", save_all=True, append_images=[Image.new("RGB", (16, 12))]), **GOOD},
        None,
    ),
    "turned by EXIF": ({"jpg": turned(), **GOOD}, None),
}
NAMES = {
    "dots": "../../up", "absolute": "/etc/absolute", "unicode": "d/鳥🐦 ñ", "long": "x" * 300, "nested": "a.b/c",
}  # fmt: skip


def write(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    members = (tar_member(f"{key}.{name}", data) for key, parts in samples for name, data in parts.items())
    path.write_bytes(b"".join(members) + END_OF_ARCHIVE)


def ledger(kit, index, folder: Path, **settings: object) -> tuple[Counter, dict[str, str]]:
    """How often each shard/key came with weight 1 in one epoch, and the manifest: shard/key -> reason."""
    seen: Counter[str] = Counter()
    settings = {"quarantine_path": folder / "bad.jsonl", "global_batch_size": 4, **settings}
    data = {"lanes": 1, "window": 8, **settings.pop("data", {})}
    with kit.train_loader(index, data=data, **settings) as loader:
        for batch in islice(loader, index.num_samples // settings["global_batch_size"]):
            assert torch.isfinite(batch.weights).all()
            seen.update(key for key, weight in zip(batch.keys, batch.weights.tolist(), strict=True) if weight)
    lines = [json.loads(line) for file in folder.glob("bad.*") for line in file.read_text().splitlines()]
    return seen, {f"{line['shard']}/{line['key']}": line["reason"] for line in lines}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_sample(kit, tmp_path: Path, fault: str) -> None:
    members, reason = FAULTS[fault]
    write(
        tmp_path / "a.tar",
        [("a", {"png": WHOLE, **GOOD}), (NAME, members), *good(6)],
    )
    seen, bad = ledger(kit, build_index(str(tmp_path), workers=1), tmp_path)
    whole = {"a.tar/a", *(f"a.tar/z{i}" for i in range(6))} | ({f"a.tar/{NAME}"} if reason is None else set())
    assert seen == Counter(whole)
    assert set(bad) == ({f"a.tar/{NAME}"} if reason else set())
    assert reason is None or reason in bad[f"a.tar/{NAME}"]
    assert not Path("/tmp/minivit-was-unpickled").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_ever_names(kit, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    before = sorted(tmp_path.rglob("*"))
    write(
        tmp_path / "data" / "a.tar",
        [(NAMES[name], {"png": WHOLE, **GOOD}), *good(3)],
    )
    seen, bad = ledger(kit, build_index(str(tmp_path / "data"), workers=1), tmp_path)
    assert seen[f"a.tar/{NAMES[name]}"] == 1
    assert bad == {}
    made = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert made <= {"a.tar", "a.tar.idx", "index.json", ".index.lock"}


def test_a_label_outside_the_classes_ends_the_run_in_one_sentence(kit, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [(f"z{i}", {"png": WHOLE, "cls": str(i * 4).encode()}) for i in range(4)])
    with pytest.raises(DataError, match=r"a.tar/z3 has label 12, but labels must be 0 to 9 for 10 classes"):
        ledger(kit, build_index(str(tmp_path), workers=1), tmp_path)


def test_duplicate_keys_are_two_samples(kit, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [(NAME, {"png": WHOLE, **GOOD})] * 4)
    seen, bad = ledger(kit, build_index(str(tmp_path), workers=1), tmp_path)
    assert (seen, bad) == (Counter({"a.tar/s": 4}), {})


def test_an_empty_shard_is_passed_over(kit, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [])
    write(tmp_path / "b.tar", good(4))
    seen, bad = ledger(kit, build_index(str(tmp_path), workers=1), tmp_path)
    assert (len(seen), bad) == (4, {})


def test_a_sample_split_over_the_shards_end_is_bad_on_both_sides(kit, tmp_path: Path) -> None:
    whole = good(3)
    write(tmp_path / "a.tar", [*whole, (NAME, {"png": WHOLE})])
    write(tmp_path / "b.tar", [(NAME, GOOD), *whole])
    seen, bad = ledger(kit, build_index(str(tmp_path), workers=1), tmp_path)
    assert seen == Counter(f"{shard}.tar/z{i}" for shard in "ab" for i in range(3))
    assert "no label member" in bad["a.tar/s"]
    assert "no image member" in bad["b.tar/s"]


def test_a_torn_tar_is_refused_by_the_index_and_its_rest_by_the_loader(kit, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", good(8))
    index = build_index(str(tmp_path), workers=1)
    path = tmp_path / "a.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a.tar: .* bytes, but the index says"):
        load_index(str(tmp_path))
    with pytest.raises(DataError, match=r"a.tar: ends at byte"):
        build_index(str(tmp_path), workers=1)
    seen, bad = ledger(kit, index, tmp_path)  # torn while a run goes on
    assert 3 <= len(seen) <= 4
    assert len(seen) + len(bad) == 8
    assert all("the tar" in reason for reason in bad.values())


def test_an_index_older_than_its_tar_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("z", {"png": WHOLE, **GOOD})])
    build_index(str(tmp_path), workers=1)
    write(tmp_path / "a.tar", [("z", {"png": WHOLE, **GOOD}), ("y", {"png": WHOLE, **GOOD})])
    with pytest.raises(DataError, match=r"a\.tar: .*; run `minivit shards index"):
        load_index(str(tmp_path))


def test_a_program_for_a_shard_is_refused() -> None:
    with pytest.raises(DataError, match="'pipe:' runs programs and is refused"):
        load_index("pipe:cat a.tar")


def test_after_all_faults_at_once_the_ledger_is_exact(kit, tmp_path: Path) -> None:
    """20,000 samples, every 40th with a fault of the list, on two ranks with a loader process each."""
    faults = list(FAULTS.items())
    expected, whole = {}, Counter()
    for shard in range(10):
        samples = []
        for row in range(2000):
            number = shard * 2000 + row
            key, (members, reason) = f"s{number}", ({"png": WHOLE, "cls": str(number % 10).encode()}, None)
            if number % 40 == 7:
                members, reason = faults[number // 40 % len(faults)][1]
            samples.append((key, members))
            name = f"{shard}.tar/{key}"
            if reason is None:
                whole[name] = 1
            else:
                expected[name] = reason
        write(tmp_path / f"{shard}.tar", samples)
    index = build_index(str(tmp_path), workers=2)
    assert index.num_samples == 20_000
    seen: Counter[str] = Counter()
    augment = AugmentConfig(crop="none", flip=False)
    settings = {"world_size": 2, "global_batch_size": 400, "quarantine_path": tmp_path / "bad.jsonl"}
    for rank in range(2):
        data = {"lanes": 16, "window": 256, "loader_workers": 1, "augment": augment}
        with kit.train_loader(index, rank=rank, data=data, **settings) as loader:
            for batch in islice(loader, 50):
                seen.update(key for key, weight in zip(batch.keys, batch.weights.tolist(), strict=True) if weight)
    lines = [json.loads(line) for file in tmp_path.glob("bad.*") for line in file.read_text().splitlines()]
    assert seen == whole
    # Workers run ahead into the next epoch, where one may meet what another rank's has noted.
    reasons = {f"{line['shard']}/{line['key']}": line["reason"] for line in lines}
    assert set(reasons) == set(expected)
    assert all(expected[name] in reason for name, reason in reasons.items())
