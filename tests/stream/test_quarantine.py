from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.stream.quarantine import (
    MAX_IN_A_ROW,
    SHARE_GRACE,
    Quarantine,
    load_excluded,
    manifest_digest,
    most_frequent,
)

BAD = {3: "torn image", 11: "no label", 20: "label text", 21: "no image", 30: "empty image"}


def spoil(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
    match BAD.get(number):
        case "torn image":
            return {**members, "png": members["png"][:-30]}
        case "no label":
            return {"png": members["png"]}
        case "label text":
            return {**members, "cls": b"cat"}
        case "no image":
            return {"txt": b"words", "cls": members["cls"]}
        case "empty image":
            return {**members, "png": b""}
    return members


@pytest.fixture(scope="module")
def spoilt(kit, tmp_path_factory: pytest.TempPathFactory):
    return kit.write_shards(tmp_path_factory.mktemp("spoilt"), [15, 25], spoil=spoil)


def manifest_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for file in folder.glob("bad.*.jsonl") for line in file.read_text().splitlines()]


def test_the_ledger_is_exact(spoilt, kit, tmp_path) -> None:
    steps = kit.in_process(
        spoilt, world_size=2, workers=2, steps=5, global_batch_size=8, lanes=8, quarantine_path=tmp_path / "bad.jsonl"
    )
    weights = {
        key: weight for step in steps for b in step for key, weight in zip(b.keys, b.weights.tolist(), strict=True)
    }
    assert len(weights) == 40
    assert {int(key.rsplit("/s", 1)[1]) for key, weight in weights.items() if weight == 0} == set(BAD)
    lines = manifest_lines(tmp_path)
    assert sorted((line["shard"], line["index"], line["key"]) for line in lines) == [
        ("train-000000.tar", 3, "s3"),
        ("train-000000.tar", 11, "s11"),
        ("train-000001.tar", 5, "s20"),
        ("train-000001.tar", 6, "s21"),
        ("train-000001.tar", 15, "s30"),
    ]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert "cannot be decoded" in reasons["s3"]
    assert reasons["s11"] == "no label member (looked for cls; found png)"
    assert reasons["s20"] == "the label is 'cat', not a class number"
    assert "no image member (looked for png, jpg, jpeg, webp; found txt, cls)" in reasons["s21"]
    assert reasons["s30"] == "the image is empty"


def test_a_stand_in_is_a_copy_of_a_good_neighbour(spoilt, kit) -> None:
    steps = kit.in_process(spoilt, world_size=1, workers=1, steps=5, global_batch_size=8, lanes=8, window=5)
    good = {int(value) for step in steps for value in step[0].views["image"][step[0].weights == 1][:, 0, -1, -1]}
    stand_ins = torch.cat([step[0].views["image"][step[0].weights == 0][:, 0, -1, -1] for step in steps]).tolist()
    assert len(stand_ins) == len(BAD)
    assert set(stand_ins) <= good


def test_a_torn_header_is_a_bad_sample(kit, tmp_path) -> None:
    index = kit.write_shards(tmp_path, [12])
    tar = tmp_path / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2 // 512 * 512 : len(data) // 2 // 512 * 512 + 512] = b"\xff" * 512
    tar.write_bytes(data)
    with kit.train_loader(index, quarantine_path=tmp_path / "bad.jsonl") as loader:
        batches = list(islice(loader, 2))
    assert 0 < sum(int((batch.weights == 0).sum()) for batch in batches) <= 2
    assert manifest_lines(tmp_path)


def test_the_next_run_leaves_out_what_the_manifest_names(spoilt, kit, tmp_path) -> None:
    manifest = tmp_path / "bad.jsonl"
    with kit.train_loader(spoilt, quarantine_path=manifest, data={"loader_workers": 2}) as loader:
        list(islice(loader, 5))
    later = {"exclude": str(manifest), "lanes": 5}
    with kit.train_loader(spoilt, data=later, global_batch_size=35) as loader:
        assert loader.samples_per_epoch == 35
        batch = next(loader)
    assert batch.weights.eq(1).all()
    assert {int(key.rsplit("/s", 1)[1]) for key in batch.keys} == set(range(40)) - set(BAD)


def test_a_manifest_by_key_alone_is_understood(spoilt, tmp_path) -> None:
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text(
        '{"shard": "train-000001.tar", "key": "s17", "reason": "ugly"}\n{"shard": "else.tar", "key": "x"}\n'
    )
    excluded = load_excluded(str(manifest), spoilt)
    assert {shard: samples.tolist() for shard, samples in excluded.items()} == {1: [2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no quarantine manifest .*bad.jsonl; correct the path"),
        ("not json\n", "bad.jsonl:1 is not a line of a quarantine manifest"),
        ('{"shard": "train-000001.tar", "key": "nobody"}\n', "'nobody', which is not in train-000001.tar"),
        ('{"shard": "train-000001.tar", "key": "s1", "index": 25}\n', "sample 25 of train-000001.tar, which has 25"),
    ],
)
def test_a_wrong_manifest_is_one_sentence(spoilt, tmp_path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_excluded(str(tmp_path / "bad.jsonl"), spoilt)


def test_the_digest_of_a_manifest_is_that_of_its_samples(tmp_path) -> None:
    def digest(name: str, *lines: dict[str, object]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return manifest_digest(str(tmp_path / "bad.jsonl"))

    one, other = {"shard": "a.tar", "index": 3, "key": "k3"}, {"shard": "a.tar", "index": 4, "key": "k4"}
    both = digest("bad.jsonl", one, other)
    assert digest("bad.jsonl", other, one | {"reason": "torn"}, one) == both
    assert digest("bad.jsonl", one) != both
    assert digest("bad.rank0-worker0.jsonl", other) == both
    assert digest("bad.rank0-worker0.jsonl", other | {"shard": "b.tar"}) != both
    with pytest.raises(DataError, match="there is no quarantine manifest"):
        manifest_digest(str(tmp_path / "gone.jsonl"))


def test_a_restart_notes_nothing_twice(tmp_path) -> None:
    for _ in range(2):
        Quarantine(tmp_path / "bad.jsonl", "rank0-worker0").bad("a.tar", 1, "k", "torn", "t")
    assert len(manifest_lines(tmp_path)) == 1


def test_a_line_that_a_crash_left_torn_spoils_no_later_one(tmp_path) -> None:
    Quarantine(tmp_path / "bad.jsonl", "w").bad("a.tar", 1, "k", "torn", "t")
    with (tmp_path / "bad.w.jsonl").open("a") as file:
        file.write('{"dataset": "t", "sha')
    Quarantine(tmp_path / "bad.jsonl", "w").bad("a.tar", 2, "l", "torn", "t")
    assert [line["index"] for line in manifest_lines(tmp_path)] == [1, 2]


def test_too_many_in_a_row_are_an_error() -> None:
    quarantine = Quarantine(None, "")
    for number in range(MAX_IN_A_ROW - 1):
        quarantine.bad("a.tar", number, f"k{number}", "torn", "t")
    with pytest.raises(DataError, match=r"64 bad samples in a row .*: torn in 64; the last is a\.tar/k63: torn"):
        quarantine.bad("a.tar", 63, "k63", "torn", "t")


def test_too_large_a_share_is_an_error() -> None:
    quarantine = Quarantine(None, "")
    for number in range(SHARE_GRACE):
        quarantine.good("t")
        quarantine.bad("a.tar", number, "k", "torn", "t")
    quarantine.good("t")
    with pytest.raises(DataError, match=r"65 of 130 samples of t are bad \(.*\): torn in 65; the last"):
        quarantine.bad("a.tar", 1000, "k", "torn", "t")


def test_a_set_of_bad_samples_alone_ends_in_an_error_and_not_in_a_hang(kit, tmp_path) -> None:
    index = kit.write_shards(tmp_path, [100], spoil=lambda _, members: {**members, "png": b"torn"})
    with kit.train_loader(index, data={"window": 50}) as loader, pytest.raises(DataError, match="51 of 51 samples"):
        list(loader)


def test_batches_without_any_good_sample_are_black(kit, tmp_path) -> None:
    index = kit.write_shards(tmp_path, [40], spoil=lambda i, members: members if i > 15 else {**members, "png": b"x"})
    with kit.train_loader(index, data={"lanes": 1, "window": 8}) as loader:
        batch = next(batch for batch in islice(loader, 5) if not batch.weights.any())
    np.testing.assert_array_equal(batch.views["image"].numpy(), 0)
    assert [reason.partition(" (")[0] for reason in batch.reasons] == ["no readable image header"] * 8


def test_a_small_set_may_not_be_bad_for_the_most_part() -> None:
    quarantine = Quarantine(None, "", {"t": 20, "u": 1000})
    for number in range(10):
        quarantine.bad("a.tar", number, "k", "torn", "t")
        quarantine.good("u")
    with pytest.raises(DataError, match="11 of 11 samples of t are bad"):
        quarantine.bad("a.tar", 10, "k", "torn", "t")


def test_the_same_sample_in_every_epoch_counts_once() -> None:
    quarantine = Quarantine(None, "", {"t": 4})
    for _ in range(100):
        quarantine.bad("a.tar", 0, "k", "torn", "t")
        quarantine.good("t")


def test_a_data_set_of_a_mixture_is_not_made_up_for_by_a_larger_one() -> None:
    quarantine = Quarantine(None, "")
    for number in range(SHARE_GRACE):
        quarantine.bad("a.tar", number, "k", "torn", "small")
        for _ in range(100):
            quarantine.good("large")
    with pytest.raises(DataError, match="65 of 65 samples of small are bad"):
        quarantine.bad("a.tar", SHARE_GRACE, "k", "torn", "small")


def test_the_most_frequent_reasons_are_counted() -> None:
    reasons = Counter({"no image": 5, "torn (at byte 3)": 1, "no label": 9, "empty": 2})
    assert most_frequent(reasons) == "no label in 9, no image in 5, empty in 2, others in 1"


def test_labels_that_are_no_numbers_are_one_reason() -> None:
    quarantine = Quarantine(None, "", {"t": 1000})
    for number in range(1, MAX_IN_A_ROW):
        quarantine.bad("a.tar", number, "k", f"the label is 'cat {number}', not a class number", "t")
    with pytest.raises(DataError, match=r"in a row .*: the label is '\.\.\.', not a class number in 64; the last is"):
        quarantine.bad("a.tar", 0, "k", "the label is 'dog', not a class number", "t")
