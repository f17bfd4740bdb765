"""A stage that learns from a teacher: its edges in the graph, its checks before the run, and its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from timm.data import ImageNetInfo

from pipeline.config.load import parse_config
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_costs import count_parameters, forward_flops
from pipeline.models.variants import build_spec
from pipeline.stages.context import RunContext, find_datasets, open_datasets
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.inputs import inputs_digest
from pipeline.stages.memory import teacher_bytes
from pipeline.stages.plan import Plan, StagePlan
from pipeline.stages.plan_tables import render
from pipeline.stages.planner import plan, read_statuses
from pipeline.stages.preflight import preflight
from pipeline.stages.resolve import dependencies, stage_branches
from pipeline.stages.types.train.setup import TrainSetup
from pipeline.tasks.task import task_of

CLASSES = [f"class {number}" for number in range(10)]
MICRO = build_spec("micro", image_size=28, channels=1, num_classes=10)


@pytest.fixture(autouse=True)
def with_student(make_shards: Callable[..., None], raw: dict[str, Any]) -> None:
    """`student` learns from the answers of `pretrain/micro`."""
    make_shards("train", 96, 48, CLASSES)
    make_shards("test", 20, 20, CLASSES)
    for settings in raw["datasets"].values():
        del settings["make"]
    raw["stages"] = {name: raw["stages"][name] for name in ("pretrain", "report")}
    raw["stages"]["student"] = {
        "type": "pretrain",
        "model": {"variant": "nano", "image_size": 28, "channels": 1},
        "task": {"type": "distillation", "signal": "hard", "teacher": "pretrain/micro"},
        "data": {"train": "train", "lanes": 8, "window": 4},
        "duration": "5 steps",
        "global_batch_size": 16,
    }


def export(folder: str, classes: list[str] | None = None, **changes: Any) -> str:
    spec = build_spec("micro", **{"image_size": 28, "channels": 1, "num_classes": 10} | changes)
    channels = spec.backbone.channels
    preprocess = Preprocess((0.5,) * channels, (0.5,) * channels, channels, spec.backbone.image_size)
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, classes).save(folder)
    return f"./{folder}"


def stage(result: Plan, branch_id: str) -> StagePlan:
    return next(s for s in result.stages if s.id == branch_id)


def taught_by(raw: dict[str, Any], teacher: str, **task: Any) -> dict[str, Any]:
    raw["stages"]["student"]["task"] |= {"teacher": teacher, **task}
    return raw


def test_a_student_comes_after_its_teacher(raw: dict[str, Any]) -> None:
    config = parse_config(raw, "c")
    assert dependencies(config, "student") == ["pretrain/micro"]
    assert [branch.id for branch in stage_branches(config)].index("student") == 2
    everything = parse_config(taught_by(raw, "pretrain"), "c")
    assert dependencies(everything, "student") == ["pretrain/nano", "pretrain/micro"]


def test_the_plan_counts_the_teacher(raw: dict[str, Any]) -> None:
    result = plan(parse_config(raw, "c"))
    training = stage(result, "student").training
    assert training is not None
    [model] = training.models
    assert model.teacher is not None
    assert (model.teacher.reference, model.teacher.variant) == ("pretrain/micro", "micro")
    assert model.teacher.parameters == count_parameters(MICRO)
    assert model.teacher.gflops == forward_flops(MICRO) / 1e9
    config = parse_config(raw, "c").stages["student"]
    assert isinstance(config, TrainStage)
    assert {memory.teacher for memory in model.memory} == {teacher_bytes(MICRO, 16, config.engine)}
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(result))
    assert "Teachers (GFLOPs add" in capture.get()


def test_a_teacher_that_may_be_one_of_several_gives_a_model_for_each(raw: dict[str, Any]) -> None:
    result = plan(parse_config(taught_by(raw, "pretrain", signal="features"), "c"))
    training = stage(result, "student").training
    assert training is not None
    found = {model.starts_from: model.spec["heads"]["projection"]["outputs"] for model in training.models}
    assert found == {"random, taught by pretrain/nano": 64, "random, taught by pretrain/micro": 96}


def test_a_student_is_held_against_what_its_teacher_has_seen(raw: dict[str, Any]) -> None:
    raw["datasets"]["other"] = raw["datasets"]["train"] | {"shards": "data/train-000001.tar"}
    raw["datasets"]["first"] = raw["datasets"]["test"] | {"shards": "data/train-000000.tar"}
    raw["stages"]["student"]["data"] |= {"train": "other", "val": "first"}
    config = parse_config(raw, "c")
    [warning] = preflight(config, find_datasets(config)[0]).warnings
    assert warning.startswith("datasets.first: 1 of 1 shards (train-000000.tar) are also in datasets.train")


@pytest.mark.parametrize(
    ("teacher", "task", "sentence"),
    [
        ({"channels": 3}, {}, "cannot teach this stage: it takes images of 3 channels, but the student's have 1;"),
        ({"num_classes": 7}, {}, "cannot teach this stage: its 7 classes have no names, but the student has 10 "),
        (
            {"classes": ["emu", *CLASSES[1:]]},
            {},
            "cannot teach this stage: it does not know the class 'class 0' (1 of 10 are missing); its classes are "
            "'emu', 'class 1', 'class 2', 'class 3', 'class 4', ...; use the teacher's names in the data's `classes`, ",
        ),
        ({"class_token": False}, {"signal": "features"}, "cannot teach this stage: it has no class token to learn "),
    ],
)
def test_teachers_that_cannot_teach_are_refused_before_anything_starts(
    raw: dict[str, Any], teacher: dict[str, Any], task: dict[str, Any], sentence: str
) -> None:
    config = parse_config(taught_by(raw, export("t", **teacher), **task), "c")
    with pytest.raises(ConfigError) as caught:
        plan(config)
    assert str(caught.value).startswith(f"stages.student.task.teacher: './t' {sentence}")


def test_a_teacher_that_is_not_there(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^stages\.student\.task\.teacher: gone: does not exist;"):
        plan(parse_config(taught_by(raw, "./gone"), "c"))


def test_classes_in_another_order_and_more_of_them_are_fine(raw: dict[str, Any]) -> None:
    teacher = export("t", classes=["more", *CLASSES[::-1]], num_classes=11)
    assert stage(plan(parse_config(taught_by(raw, teacher), "c")), "student").training is not None


def finish(context: RunContext, raw: dict[str, Any]) -> None:
    """All training stages have finished, as a run leaves them."""
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    for branch in stage_branches(context.config):
        if isinstance(branch.stage, TrainStage):
            run = TrainSetup(context, branch)
            folder, inputs = context.folder.stage(branch.id), run.inputs()
            Bundle(MiniViT.from_spec(run.spec).state_dict(), run.spec, run.preprocess, run.classes).save(folder.model)
            folder.write_status(Status(FINISHED, branch.stage.type, inputs_digest(inputs), inputs, ended=1.0))


def test_a_finished_student_is_skipped_until_its_teacher_changes(raw: dict[str, Any], context: RunContext) -> None:
    finish(context, raw)
    assert stage(plan(context.config, statuses=read_statuses(context.config)), "student").skipped
    raw["stages"]["pretrain"]["ema"] = 0.9
    config = parse_config(raw, "c")
    assert stage(plan(config, statuses=read_statuses(config)), "student").runs_again == "pretrain/micro runs again"


def test_the_digest_follows_the_teachers_weights_and_ranks_get_the_path(
    raw: dict[str, Any], context: RunContext
) -> None:
    finish(context, raw)
    [branch] = [branch for branch in stage_branches(context.config) if branch.id == "student"]
    before = TrainSetup(context, branch)
    folder = context.folder.stage("pretrain/micro").model
    assert before._with_teacher().task.taught_by == str(folder.absolute())
    assert before.stage.task.taught_by == "pretrain/micro"
    Bundle(MiniViT.from_spec(MICRO).state_dict(), MICRO, before.preprocess, CLASSES).save(folder)
    assert TrainSetup(context, branch).inputs()["teacher"] != before.inputs()["teacher"]


def test_a_student_from_an_export(raw: dict[str, Any], context: RunContext) -> None:
    raw["stages"] = {"student": taught_by(raw, export("t"))["stages"]["student"]}
    finish(context, raw)
    assert (Path(context.config.runs_dir) / "quick" / "stages" / "student" / "model").is_dir()


@pytest.mark.parametrize("signal", ["soft", "hard", "features"])
def test_a_timm_model_teaches_by_its_own_preprocessing(
    raw: dict[str, Any], context: RunContext, cached_weights: Callable[[str], Any], signal: str
) -> None:
    """The loss is the one from timm's model, given the images at its 160 px, normalised and with its class numbers."""
    theirs, images = cached_weights("test_vit"), torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    numbers = list(range(990, -1, -110))
    synsets = [ImageNetInfo().label_names()[number] for number in numbers]
    for settings in raw["datasets"].values():
        settings |= {"mean": [0.3, 0.4, 0.45], "std": [0.25, 0.2, 0.3], "classes": synsets}
    raw["stages"] = {"student": taught_by(raw, "timm:test_vit", signal=signal, share=0.7)["stages"]["student"]}
    raw["stages"]["student"]["model"] |= {"image_size": 32, "channels": 3}
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    setup = TrainSetup(context, stage_branches(context.config)[0])
    task, preprocess = setup._with_teacher().task, setup.preprocess
    torch.manual_seed(0)
    module = task_of(task).module(MiniViT.from_spec(setup.spec), setup.classes, preprocess).eval()

    config = theirs.pretrained_cfg
    assert (config["input_size"], setup.classes) == ((3, 160, 160), synsets if signal != "features" else [])
    seen = F.interpolate(images / 255, (160, 160), mode="bicubic", antialias=True).clamp(0, 1)
    seen = (seen - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    ours, labels = preprocess.normalise(images), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        if signal == "features":
            options = {"norm": False, "output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
            [(patches, cls)] = theirs.forward_intermediates(seen, 1, **options)  # of the last layer
            patches = patches.transpose(1, 2).unflatten(2, (10, 10))
            patches = F.interpolate(patches, (8, 8), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
            guessed = module.head(module.model.forward_features(ours))
            near = [
                F.cosine_similarity(one, F.layer_norm(other, (64,)), dim=-1).mean(dim=1)
                for one, other in ((guessed[:, 1:], patches), (guessed[:, :1], cls))
            ]
            expected = 1 - sum(near) / 2
        else:
            logits = theirs(seen)[:, numbers]
            of_labels, of_teacher = module._logits(ours)
            taught = F.cross_entropy(of_teacher, logits.argmax(dim=1), reduction="none")
            if signal == "soft":
                p, q = (logits / 3).softmax(dim=1), (of_teacher / 3).softmax(dim=1)
                taught = 9 * (p * (p / q).log()).sum(dim=1)
            expected = 0.3 * F.cross_entropy(of_labels, labels, reduction="none") + 0.7 * taught
        targets = {"label": labels, "label_mix": labels, "label_share": torch.ones(4)}
        found = module.loss({"image": ours}, targets, torch.ones(4), {})
    torch.testing.assert_close(found.losses, expected.sum()[None], atol=1e-5, rtol=1e-5)
