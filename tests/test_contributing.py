"""What CONTRIBUTING.md promises: the smallest new thing of each kind works, and no file but those of its row changes.

`tests/contributing` mirrors `pipeline`; these tests see its files as if they were there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import click
import cv2
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

import pipeline.bench
from pipeline import load_model
from pipeline.cli import bench
from pipeline.cli.main import cli
from pipeline.config.load import load_config
from pipeline.config.stage import TYPES
from pipeline.config.targets import every_kind
from pipeline.errors import ConfigError
from pipeline.export import FORMATS, Format
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.heads import head_kinds
from pipeline.models.minivit import MiniViT
from pipeline.models.model_costs import count_parameters, forward_flops
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import VARIANTS, Variant, build_backbone
from pipeline.shards.index_file import load_index
from pipeline.stages.folder import RUNNING, RunFolder, Status
from pipeline.stages.resolve import stage_branches
from pipeline.stages.stage_type import stage_type
from pipeline.stages.stream import StageData
from pipeline.stream.batch import Batch
from pipeline.tasks.base import TaskModule
from pipeline.tasks.task import BaseTask, task_of
from pipeline.train.evaluate import evaluate_collective

ROOT = Path(__file__).parents[1]
EXAMPLES = Path(__file__).with_name("contributing")
PACKAGES = ("export", "metrics", "models.heads", "shards.make", "stages.types", "targets", "tasks")
SIDE, STEPS = 16, 40
PREPROCESS = Preprocess((0.5,), (0.5,), 1, (SIDE, SIDE))
PIPELINE = {
    "name": "ratings",
    "datasets": {"shades": {"shards": "data/*.tar", "make": "shades", "mean": [0.5], "std": [0.5]}},
    "stages": {
        "rate": {
            "type": "pretrain",
            "model": {"variant": "pico", "image_size": SIDE, "channels": 1},
            "data": {"train": "shades", "val": "shades", "lanes": 4, "window": 4, "loader_workers": 0},
            "task": {"type": "regression", "hidden": 8},
            "duration": f"{STEPS} steps",
            "global_batch_size": 16,
        },
        "judge": {"type": "evaluate", "models": ["rate"], "data": "shades"},
        "out": {"type": "export", "model": "rate", "formats": ["numpy"]},
        "weigh": {"type": "weigh", "model": "rate"},
    },
}

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module", autouse=True)
def new_things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The examples in their packages, and rows in three tables; in a folder with a pipeline of them, and its data."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PACKAGES:
            package = import_module(f"pipeline.{name}")
            patch.setattr(package, "__path__", [*package.__path__, str(EXAMPLES.joinpath(*name.split(".")))])
        patch.setitem(VARIANTS, "pico", Variant(32, 1, 2, 64, 8, "for tests"))
        patch.setitem(FORMATS, "numpy", Format("to_numpy", files=("weights.npz",)))
        patch.setitem(TYPES, "weigh", "weigh")
        every_kind.cache_clear()
        head_kinds.cache_clear()
        patch.chdir(tmp_path_factory.mktemp("work"))
        Path("ratings.yaml").write_text(yaml.safe_dump(PIPELINE))
        minivit("shards", "make", "shades", "--samples", "48", "--out", "data")
        yield
    every_kind.cache_clear()
    head_kinds.cache_clear()


@pytest.fixture(scope="module")
def task() -> BaseTask:
    return task_of(load_config("ratings.yaml").stages["rate"].task)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def spec(task: BaseTask) -> ModelSpec:
    return task.model_spec(build_backbone("pico", image_size=SIDE, channels=1), 0)


@pytest.fixture(scope="module")
def trained(task: BaseTask, spec: ModelSpec) -> TaskModule:
    """As a stage's ranks do, without their engine."""
    torch.manual_seed(0)
    module = task.module(MiniViT.from_spec(spec), [], PREPROCESS)
    optimiser = torch.optim.AdamW(module.parameters(), 1e-2)
    for batch in batches(STEPS):
        outputs = module(*given(batch))
        optimiser.zero_grad()
        (outputs.losses / module.normalisers(batch)).sum().backward()
        optimiser.step()
    return module


@pytest.fixture(scope="module")
def bundle(task: BaseTask, trained: TaskModule) -> str:
    """The folder of the finished model."""
    Bundle(trained.model.state_dict(), trained.model.spec, PREPROCESS, [], {}, task.measuring_settings).save("model")
    return "model"


def minivit(*words: str) -> str:
    """What a command prints."""
    result = CliRunner(env={"COLUMNS": "160"}).invoke(cli, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def batches(count: int) -> Iterator[Batch]:
    """Those of the training stage."""
    with StageData.open(load_config("ratings.yaml"), "rate", "stage").loader(
        rank=0, world_size=1, start_slot=0
    ) as loader:
        yield from islice(loader, count)


def given(
    batch: Batch,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """What a task's module takes."""
    return {"image": PREPROCESS.normalise(batch.views["image"])}, batch.targets, batch.weights, {}


def test_a_data_set_is_made_by_its_name_with_its_options() -> None:
    assert "shades" in minivit("shards", "make", "--help")
    assert re.search(
        r"--samples INTEGER +Number of images\.  \[default: 32\]", minivit("shards", "make", "shades", "--help")
    )
    assert load_index("data/*.tar").num_samples == 48


def test_a_reader_writes_shards_and_says_what_it_left_out() -> None:
    Path("images").mkdir()
    cv2.imwrite("images/cat.png", np.zeros((SIDE, SIDE), np.uint8))
    Path("images/dog.png").write_bytes(b"torn")
    Path("ratings.csv").write_text("cat.png,0.5\ndog.png,1\n")
    told = minivit("shards", "make", "rated", "--images", "images", "--table", "ratings.csv", "--out", "own")
    assert "images: 1 images imported" in told
    assert Path("own/train-rejected.txt").read_text().startswith("dog.png")
    assert load_index("own").members == {"rating": ("rating",)}


def test_a_kind_of_label_is_found_in_shards_checked_and_shown() -> None:
    assert load_index("data/*.tar").members == {"rating": ("rating",)}
    assert "data: valid" in minivit("shards", "verify", "data")
    assert re.search(r"without rating +0", minivit("shards", "stats", "data"))
    minivit("shards", "preview", "data", "--out", "sheet.png")
    (batch,) = batches(1)
    shown = batch.views["image"].float().mean(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(batch.targets["rating"], shown, atol=0.01, rtol=0)


def test_a_size_a_task_a_head_and_a_format_are_planned() -> None:
    planned = json.loads(minivit("plan", "ratings.yaml", "--json"))
    assert [stage["id"] for stage in planned["stages"]] == ["rate", "judge", "out", "weigh"]
    assert "value_head" in minivit("plan", "ratings.yaml")
    assert "limited by" in minivit("plan", "ratings.yaml", "--hardware", "h100")


def test_a_head_is_counted_as_it_is(spec: ModelSpec) -> None:
    model = MiniViT.from_spec(spec).eval()
    assert count_parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 1, SIDE, SIDE))
    assert forward_flops(spec) == counter.get_total_flops()


def test_a_task_learns_and_is_measured(task: BaseTask, trained: TaskModule) -> None:
    collectors = trained.collectors(validation=False).values()
    found = evaluate_collective(trained, list(batches(3)), collectors=collectors)
    assert found.keys() - {"samples", "bad_samples"} == set(task.measured.names)
    assert found["mae"] < 0.2  # 0.25 for the mean
    assert found["rank_correlation"] > 0.5


def test_a_collector_merges_what_ranks_have_seen(trained: TaskModule) -> None:
    def collected(seen: list[Batch]) -> SimpleNamespace:
        (collector,) = trained.collectors(validation=False).values()
        for batch in seen:
            collector.add(trained.eval()(*given(batch)).predicted, batch)
        return collector  # type: ignore[return-value]

    one, *others = list(batches(3))
    alone, first = collected([one, *others]), collected([one])
    first.merge(collected(others).state())
    assert first.measures() == alone.measures()
    alone.write(Path(), "rate", [])
    assert len(Path("values.csv").read_text().splitlines()) == 1 + 48


def test_a_model_predicts_and_is_exported(bundle: str, task: BaseTask) -> None:
    (predicted,) = load_model(bundle).predict([np.zeros((20, 20), np.uint8)])
    assert type(predicted) is type(task.example_prediction(0))
    minivit("predict", bundle, "data", "--out", "predicted")
    lines = Path("predicted/predictions.jsonl").read_text().splitlines()
    assert len([json.loads(line)["value"] for line in lines]) == 48
    assert "numpy" in minivit("export", "--help")
    minivit("export", bundle, "--format", "numpy", "--out", "exported")
    assert {path.name for path in Path("exported").iterdir()} == {"weights.npz", "README.md", "manifest.json"}


def test_a_type_of_stage_is_checked_and_runs(bundle: str, trained: TaskModule) -> None:
    with pytest.raises(ConfigError, match=r"stages\.weigh\.model: found 'rat', which is not a stage"):
        load_config("ratings.yaml", ["stages.weigh.model=rat"])
    config = load_config("ratings.yaml", [f"stages.weigh.model=./{bundle}"])
    branch = next(branch for branch in stage_branches(config) if branch.id == "weigh")
    said: list[str] = []
    context = SimpleNamespace(config=config, folder=RunFolder(Path("run")), say=lambda *words: said.append(words[1]))
    run = stage_type(branch.stage).start(context, branch)  # type: ignore[arg-type]
    result = run.run(Status(RUNNING, "weigh", "digest", run.inputs()))
    assert result == {"weights": sum(tensor.numel() for tensor in trained.model.state_dict().values())}
    assert said == [f"./{bundle} has {result['weights']:,} weights"]


def test_a_benchmark_is_a_command() -> None:
    """Each file of `bench` that measures something is imported by a command, and each command is in the group."""
    files = Path(pipeline.bench.__file__).parent.glob("*.py")
    measuring = {path.stem for path in files if re.search(r"^def measure\(", path.read_text(), re.M)}
    modules = list(Path(bench.__file__).parent.glob("bench_*.py"))
    imported = {
        name for path in modules for name in re.findall(r"from pipeline\.bench\.(\w+) import", path.read_text())
    }
    assert measuring <= imported
    told = {name for path in modules for name in re.findall(r'@click\.command\("([\w-]+)"\)', path.read_text())}
    assert told == set(bench.group.list_commands(click.Context(bench.group)))


def test_the_examples_of_the_table_exist() -> None:
    named = re.findall(r"`(tests/contributing/[^`]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
