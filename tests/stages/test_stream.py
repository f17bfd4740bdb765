"""A stage's data in a user's own loop: the batches that the stage trains on, on any number of ranks, from any step."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from pipeline import stage_stream
from pipeline.bench.synthetic import write_shards
from pipeline.errors import ConfigError, DataError

STEPS = 18  # 3 epochs of 96 of the 100 samples, in batches of 16


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any]) -> Path:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "data", splits=(("train", 100, 30), ("test", 21, 30)), side=28)
    for stage in ("pretrain", "larger", "finer"):
        raw["stages"][stage]["data"]["loader_workers"] = 0
    file = Path("quick.yaml")
    file.write_text(yaml.safe_dump(raw))
    return file


def merged(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The global batch of the ranks' shares."""
    order = torch.cat([batch["__slot__"] for batch in batches]).argsort()
    keys = [key for batch in batches for key in batch["__key__"]]
    names = [name for name in batches[0] if name != "__key__"]
    found = {name: torch.cat([batch[name] for batch in batches])[order] for name in names}
    return found | {"__key__": [keys[place] for place in order]}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_ranks_share_the_global_batches_of_the_stage(path: Path) -> None:
    alone = list(stage_stream(path, "pretrain/nano"))
    assert len(alone) == STEPS
    assert {name: tuple(value.shape) for name, value in alone[0].items() if name != "__key__"} == {
        "__slot__": (16,),
        "weights": (16,),
        "image": (16, 1, 28, 28),
        "label": (16,),
        "label_mix": (16,),
        "label_share": (16,),
    }
    assert torch.cat([batch["__slot__"] for batch in alone]).tolist() == list(range(16 * STEPS))
    assert {key.partition("/")[0] for batch in alone for key in batch["__key__"]} == {
        f"train-{number:06d}.tar" for number in range(4)
    }
    ranks = [list(stage_stream(path, "pretrain/nano", rank=rank, world_size=4)) for rank in range(4)]
    for step, batch in enumerate(alone):
        assert_equal(merged([batches[step] for batches in ranks]), batch)


def test_a_stream_resumes_on_other_ranks_as_if_nothing_had_happened(path: Path) -> None:
    stream, alone = stage_stream(path, "pretrain/nano"), list(stage_stream(path, "pretrain/nano"))
    for step, _ in enumerate(stream):
        if step == 6:
            break
    state = stream.state_dict()
    assert state == {"slots": 7 * 16}
    ranks = []
    for rank in range(2):
        resumed = stage_stream(path, "pretrain/nano", rank=rank, world_size=2)
        resumed.load_state_dict(state)
        ranks.append(list(resumed))
        assert len(ranks[rank]) == STEPS - 7
        assert len(list(islice(resumed, 1))) == 1  # a second iteration begins anew
        assert resumed.state_dict() == {"slots": 16}
    for step, batch in enumerate(alone[7:]):
        assert_equal(merged([batches[step] for batches in ranks]), batch)


def test_stages_draw_independently_and_overrides_count(path: Path) -> None:
    first, other = (next(iter(stage_stream(path, name))) for name in ("pretrain/nano", "pretrain/micro"))
    assert first["__key__"] != other["__key__"]
    stream = stage_stream(path, "finer", overrides=["stages.finer.duration=9 steps"])
    sizes = {batch["image"].shape[-1] for batch in stream}
    assert sizes <= {20, 28, 36}
    assert len(sizes) > 1


def test_it_goes_through_a_data_loader(path: Path) -> None:
    stream = stage_stream(path, "pretrain/nano")
    loaded = list(islice(DataLoader(stream, batch_size=None, num_workers=0), 2))
    assert_equal(loaded[1], list(islice(stage_stream(path, "pretrain/nano"), 2))[1])
    with pytest.raises(DataError, match="num_workers: a stage's stream decodes in its own processes"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")))


def test_what_is_no_training_stage_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^stage: found 'evaluate', which is not a training stage; "):
        stage_stream(path, "evaluate")
    with pytest.raises(DataError, match="8 lanes cannot be split among 12 ranks"):
        stage_stream(path, "pretrain/nano", world_size=12)
    for rank, world_size in ((-1, 1), (1, 1), (2, 2), (0, 0)):
        with pytest.raises(DataError, match=rf"^rank: found {rank} of {world_size}; ranks are 0 to"):
            stage_stream(path, "pretrain/nano", rank=rank, world_size=world_size)
    stream = stage_stream(path, "pretrain/nano")
    for state in ({"slots": 3}, {"slots": -16}, {"slots": 16 * (STEPS + 1)}, {"slots": "16"}, {}):
        with pytest.raises(
            DataError, match=rf"^state: .* does not belong to a stream of {STEPS} global batches of 16 samples"
        ):
            stream.load_state_dict(state)


def test_a_script_without_a_guard_is_not_run_again_by_its_workers(path: Path) -> None:
    """Nor do workers of grey images get the torch that it imports."""
    Path("loop.py").write_text("""
import psutil, torch
from pipeline import stage_stream
print("once", flush=True)
stream = stage_stream("quick.yaml", "pretrain/nano", overrides=["stages.pretrain.data.loader_workers=1"])
for number, batch in enumerate(stream):
    if number == 0:
        mapped = [{part.path for part in child.memory_maps()} for child in psutil.Process().children(recursive=True)]
        assert not [path for paths in mapped for path in paths if "libtorch" in path]
print(number, batch["__slot__"][-1].item())
""")
    done = subprocess.run([sys.executable, "loop.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["once", f"{STEPS - 1} {16 * STEPS - 1}"]
