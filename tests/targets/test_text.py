from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.views import IMAGE
from pipeline.models.bundle import SQUASH
from pipeline.shards.build import build_index
from pipeline.shards.named_sets import named_set
from pipeline.shards.preview import contact_sheet
from pipeline.shards.stats import dataset_stats
from pipeline.shards.verify import verify_shards
from pipeline.shards.write import TarWriter
from pipeline.stages.data import build_targets
from pipeline.stream.batch import Batch
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.source import Source
from pipeline.targets.base import BadLabel
from pipeline.targets.text import Text, TextConfig, number_of
from pipeline.text.training import train_tokenizer
from pipeline.train.job import Dataset

PIXEL = cv2.imencode(".png", np.zeros((8, 8, 1), np.uint8))[1].tobytes()
TOKENIZER = train_tokenizer(["one two three four"], 300, 12)
PLAIN, JSON = Text(("txt",)), Text(("json",), "said")


def test_captions_stand_on_lines_or_in_a_field() -> None:
    assert PLAIN.decode({"txt": b"\xef\xbb\xbf a  red\tboot \r\n\n b \n"}, None) == ("a red boot", "b")
    assert PLAIN.decode({"txt": memoryview("größe".encode())}, None) == ("größe",)
    assert JSON.decode({"json": b'{"said": "a\\nb"}'}, None) == ("a b",)
    assert JSON.decode({"json": b'{"said": ["a", "", "b"], "other": 3}'}, None) == ("a", "b")


@pytest.mark.parametrize(
    ("target", "members", "reason"),
    [
        (PLAIN, {"png": b""}, r"no caption member \(looked for txt; found png\)"),
        (PLAIN, {"txt": b" \n"}, "the caption is empty"),
        (PLAIN, {"txt": b"gr\xfc\xdfe"}, r"the member txt is not UTF-8 \(byte 2\)"),
        (JSON, {"json": b"{"}, "the member json is not valid JSON"),
        (JSON, {"json": b'{"a": 1}'}, r"no caption \(looked for 'said' in json; found a\)"),
        (JSON, {"json": b"[]"}, r"no caption \(looked for 'said' in json; found no fields\)"),
        (JSON, {"json": b'{"said": 3}'}, "'said' in json is neither a text nor a list of texts"),
        (JSON, {"json": b'{"said": [" "]}'}, "the caption is empty"),
    ],
)
def test_a_bad_caption_says_why(target: Text, members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadLabel, match=f"^{reason}$"):
        target.decode(members, None)


def test_a_data_set_names_the_member_and_the_field() -> None:
    config = DatasetConfig(shards="a", targets={"text": {"member": "json", "field": "said"}}).targets.of("text")
    assert Text.build(config.members, config, None) == JSON
    assert Text.build(("meta.json",), TextConfig(), None).field == "caption"
    assert Text.build(("txt",), TextConfig(), None).inputs() == {"member": "txt"}
    with pytest.raises(ValidationError, match="field: found 'said', but 'txt' is not JSON"):
        TextConfig(member="txt", field="said")


def number_in(key: str) -> int:
    return int(key.rpartition("s")[2])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Sample i has i mod 4 captions."""
    with TarWriter(tmp_path / "a.tar") as tar:
        for number in range(24):
            captions = [f"{number} {word}" for word in ("one", "two", "three")][: number % 4]
            tar.write(f"s{number}", {"png": PIXEL, "json": json.dumps({"said": captions}).encode()})
        tar.finish()
    given = {"text": {"member": "json", "field": "said"}}
    config = DatasetConfig(shards="unused", targets=given)
    index = build_index(str(tmp_path), targets={"text": ("json",)}, workers=1)
    targets = build_targets("t", Dataset(config, index), ["text"], {})
    return Source("t", index, config, AugmentConfig(crop="none"), 1, targets).with_tokenizer(TOKENIZER)


def batches(source: Source, count: int, *, seed: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0) -> list:
    """[(slot, key, caption's tokens, weight)] of some steps."""
    rows: list[Any] = []
    with TrainLoader(
        [source],
        DataConfig(train="t", lanes=4, window=4, loader_workers=workers),
        channels=1,
        targets=["text"],
        views=IMAGE,
        seed=seed,
        rank=rank,
        world_size=world_size,
        global_batch_size=8,
        size_at=lambda step: (8, 8),
    ) as loader:
        for batch in islice(loader, count):
            rows += rows_of(batch)
    return rows


def rows_of(batch: Batch) -> list[Any]:
    tokens, numbers = batch.targets["tokens"], batch.targets["caption"].tolist()
    for row, number, weight in zip(tokens.numpy(), numbers, batch.weights.tolist(), strict=True):
        assert number == (number_of(row) if weight else 0)
    return list(zip(batch.slots.tolist(), batch.keys, tokens.tolist(), batch.weights.tolist(), strict=True))


def test_one_caption_is_drawn_for_each_slot_whoever_reads_it(source: Source) -> None:
    rows = batches(source, 90)
    shared = [row for rank in (0, 1) for row in batches(source, 90, rank=rank, world_size=2)]
    assert sorted(shared) == rows
    assert [row[2] for row in batches(source, 90, seed=1)] != [row[2] for row in rows]
    met: dict[int, set[tuple[int, ...]]] = {}
    for _, key, tokens, weight in rows:
        number = number_in(key)
        assert weight == (number % 4 > 0)
        if weight:
            met.setdefault(number, set()).add(tuple(tokens))
    for number, found in met.items():
        words = ("one", "two", "three")[: number % 4]
        assert found == {tuple(row) for row in TOKENIZER.encode([f"{number} {word}" for word in words]).tolist()}


def test_an_evaluation_sees_all_captions(source: Source) -> None:
    loader = EvalLoader(
        source,
        channels=1,
        targets=["text"],
        views=IMAGE,
        size=(8, 8),
        plain=SQUASH,
        rank=0,
        world_size=1,
        batch_size=24,
        loader_workers=0,
    )
    (batch,) = loader
    offsets = batch.targets["all_tokens.offsets"].tolist()
    assert [stop - start for start, stop in pairwise(offsets)] == [i % 4 for i in range(24)]
    expected = [f"{number} {word}" for number in range(24) for word in ("one", "two", "three")[: number % 4]]
    assert batch.targets["all_tokens"].tolist() == TOKENIZER.encode(expected).tolist()
    rows = batch.targets["all_tokens"].numpy()
    assert batch.targets["all_captions"].tolist() == [number_of(row) for row in rows]
    assert batch.reasons == ["the caption is empty"] * 6


def test_the_tools_know_captions(tmp_path: Path) -> None:
    captions = {"a": b"a red boot", "b": b"\xff", "c": b" ", "d": b"two\nlines"}
    with TarWriter(tmp_path / "a.tar") as tar:
        for key, caption in captions.items():
            tar.write(key, {"png": PIXEL, "txt": caption})
        tar.write("e", {"png": PIXEL})
        tar.finish()
    index = build_index(str(tmp_path), workers=1)
    assert index.members == {"text": ("txt",)}
    assert index.totals["text"] == {"missing": 1, "bad": 2, "unusable": 3}
    found = {fault.key: fault.message for fault in verify_shards(str(tmp_path), workers=1) if fault.kind.is_fault}
    assert found == {
        "b": "the member txt is not UTF-8 (byte 0)",
        "c": "the caption is empty",
        "e": "no text member (looked for txt; found png)",
    }
    stats, _ = dataset_stats(named_set(str(tmp_path)), workers=1)
    found = stats["targets"]["text"]
    assert (found["without"], found["words"]["p100"], found["duplicates"]) == (3, 3, 0)
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=5)
