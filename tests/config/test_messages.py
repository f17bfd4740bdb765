"""Each bad input gives one sentence with the dotted path, what was found, what is allowed and the nearest name."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.errors import ConfigError

REMOVE = object()
DURATION = "a duration such as '10 epochs', '5000 steps' or '1.2M samples'"
WORKERS = "a whole number above 0 or a section with the keys min, max or one of auto"
TYPES = "pretrain, finetune, evaluate, probe, export, report"


def fault(raw: dict[str, Any], path: str, value: Any) -> str:
    """The message about `raw` with the value at a dotted path replaced."""
    *parents, last = path.split(".")
    section = raw
    for key in parents:
        section = section.setdefault(key, {})
    if value is REMOVE:
        del section[last]
    else:
        section[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, "c.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("clustr", {}, "clustr: unknown key, did you mean 'cluster'? Allowed: name, seed, "),
        (
            "datasets.train.target",
            "cls",
            "datasets.train.target: unknown key, did you mean 'targets'? Allowed: shards, ",
        ),
        (
            "datasets.train.targets.masks",
            "seg.png",
            "datasets.train.targets.masks: unknown key, did you mean 'mask'? Allowed: boxes, class_id, ",
        ),
        (
            "datasets.train.targets.mask",
            {"ignored": 0},
            "datasets.train.targets.mask.ignored: unknown key, did you mean 'ignore'? Allowed: member, groups, ignore.",
        ),
        ("stages.pretrain.model.dept", 3, "stages.pretrain.model.dept: unknown key, did you mean 'depth'? Allowed: "),
        (
            "stages.pretrain.optimizer.freeze",
            0.5,
            "stages.pretrain.optimizer.freeze: found 0.5, but without init_from the frozen layers would stay random; "
            "set init_from, or leave freeze out",
        ),
        (
            "stages.finetune.optimizer.freeze",
            2,
            "stages.finetune.optimizer.freeze: found 2, expected a number from 0 up",
        ),
        ("stages.finetune.lr", 3, "stages.finetune.lr: unknown key; did you mean 'optimizer.lr'? Allowed: "),
        (
            "stages.pretrain.data.augment.rand_augment",
            {"opps": 2},
            "stages.pretrain.data.augment.rand_augment.opps: unknown key, did you mean 'ops'? Allowed: ops, magnitude.",
        ),
        (
            "stages.report.xyzzy",
            1,
            "stages.report.xyzzy: unknown key, allowed: resources, type.",
        ),
        (
            "stages.pretrain.type",
            "pretrian",
            f"stages.pretrain.type: found 'pretrian', did you mean 'pretrain'? Allowed: {TYPES}.",
        ),
        (
            "datasets.train.background",
            "whiet",
            "datasets.train.background: found 'whiet', expected a colour such as black, '#ff8800' or [255, 136, 0].",
        ),
        (
            "datasets.train.background",
            [0, 0, 256],
            "datasets.train.background[2]: found 256, expected a whole number from 0 up to 255.",
        ),
        ("stages.pretrain.type", 3, f"stages.pretrain.type: found 3, allowed: {TYPES}."),
        ("stages.pretrain.type", REMOVE, f"stages.pretrain.type: missing; set it to one of {TYPES}."),
        ("stages.pretrain", 3, "stages.pretrain: found 3, expected a section with a type."),
        (
            "stages.pretrain.global_batch_size",
            "128",
            "stages.pretrain.global_batch_size: found '128', expected a whole number above 0.",
        ),
        (
            "stages.pretrain.global_batch_size",
            REMOVE,
            "stages.pretrain.global_batch_size: missing; set it to a whole number above 0.",
        ),
        ("cluster.workers", True, f"cluster.workers: found true, expected {WORKERS}."),
        ("cluster.workers", 1.5, f"cluster.workers: found 1.5, expected {WORKERS}."),
        ("cluster.workers", {"min": 3, "max": 2}, "cluster.workers.min: 3 is above max = 2; set it to at most that."),
        (
            "cluster.workers",
            {"max": 2, "mix": 3},
            "cluster.workers.mix: unknown key, did you mean 'min'? Allowed: min, max.",
        ),
        ("cluster.workers", {"min": 3}, "cluster.workers.max: missing; set it to a whole number above 0."),
        (
            "train",
            {"replay_slots": "12"},
            "train.replay_slots: found '12', expected the slots A:B of a batch, as in the error that stopped the run.",
        ),
        ("seed", -1, "seed: found -1, expected a whole number from 0."),
        ("seed", None, "seed: found nothing, expected a whole number from 0."),
        (
            "stages.pretrain.data.augment.flip",
            "yes",
            "stages.pretrain.data.augment.flip: found 'yes', expected true or false.",
        ),
        (
            "stages.pretrain.model.norm",
            "pro",
            "stages.pretrain.model.norm: found 'pro', expected one of pre, post; did you mean 'pre'?",
        ),
        ("stages.pretrain.model.channels", 2, "stages.pretrain.model.channels: found 2, expected one of 1, 3."),
        (
            "stages.pretrain.model.variant",
            5,
            "stages.pretrain.model.variant: found 5, expected text or a list, each text.",
        ),
        (
            "stages.pretrain.model.variant",
            ["nano", "nano"],
            "stages.pretrain.model.variant: found ['nano', 'nano'], expected a variant name, or a list of different",
        ),
        (
            "stages.pretrain.model.image_size",
            [1, 2, 3],
            "stages.pretrain.model.image_size: found [1, 2, 3], "
            "expected a whole number or a list of 2, each a whole number.",
        ),
        ("stages.pretrain.model.image_size", 0, "stages.pretrain.model.image_size: found 0, expected pixels above 0, "),
        ("stages.pretrain.duration", "3 eons", f"stages.pretrain.duration: found '3 eons', expected {DURATION}."),
        ("stages.pretrain.duration", 3, f"stages.pretrain.duration: found 3, expected {DURATION}."),
        ("stages.pretrain.duration", REMOVE, f"stages.pretrain.duration: missing; set it to {DURATION}."),
        (
            "stages.pretrain.duration",
            "0 steps",
            "stages.pretrain.duration: found '0 steps', expected a length above 0.",
        ),
        (
            "stages.finetune.optimizer.betas",
            [0.9, 2],
            "stages.finetune.optimizer.betas[1]: found 2, expected a number from 0 below 1.",
        ),
        (
            "stages.finetune.optimizer.lr",
            float("inf"),
            "stages.finetune.optimizer.lr: found inf, expected a number above 0.",
        ),
        (
            "stages.finetune.resolution",
            {"mode": "random"},
            "stages.finetune.resolution.sizes: a list of image sizes for mode 'progressive' or 'random'",
        ),
        (
            "stages.evaluate.models",
            [],
            "stages.evaluate.models: found [], expected a list of at least 1, each text.",
        ),
        (
            "stages.pretrain.global_batch_size",
            100,
            "stages.pretrain.global_batch_size: 100 is not divisible by data.lanes = 64; use a multiple of it, ",
        ),
        (
            "stages.pretrain.checkpoint",
            {"keep_best": "val/acuracy"},
            "stages.pretrain.checkpoint.keep_best: found 'val/acuracy', did you mean 'val/accuracy'? "
            "Allowed: val/loss, val/accuracy, val/top5",
        ),
        (
            "stages.finetune.init_from",
            REMOVE,
            "stages.finetune.init_from: missing; set it to the stage, export, timm:NAME ",
        ),
        ("stages.pretrain.model.variant", REMOVE, "stages.pretrain.model.variant: missing, and there is no init_from "),
        (
            "datasets.train.std",
            [0.5, 0.5],
            "datasets.train.std: found 2 values, but mean has 1; give one per channel in ",
        ),
        (
            "datasets.train.classes",
            ["cat", "dog", "cat "],
            "datasets.train.classes: classes 0 and 2 are both named 'cat', so they would merge; rename one of ",
        ),
        ("datasets.train.classes", ["cat", " "], "datasets.train.classes: name 1 is blank; give each class a name."),
        (
            "stages.pretrain.data",
            {"mixture": {"train": {"label_map": {"cat": "dog", " cat": "pet"}}}},
            "stages.pretrain.data.mixture.train.label_map: found a mapping, expected a mapping of class names to ",
        ),
        (
            "datasets.train.mean",
            [123.675],
            "datasets.train.mean: found 123.675, but pixel values are between 0 and 1; divide values measured from 0 "
            "to 255 by 255: mean [0.485], std [0.001961].",
        ),
        (
            "datasets.train.std",
            [58.395],
            "datasets.train.std: found 58.395, but pixel values are between 0 and 1; divide values measured from 0 "
            "to 255 by 255: std [0.229].",
        ),
        ("datasets.train.mean", [-0.5], "datasets.train.mean: found -0.5, but pixel values are between 0 and 1; give "),
        ("datasets.train.mean", [500], "datasets.train.mean: found 500, but pixel values are between 0 and 1; give "),
        ("datasets.train.std", [0], "datasets.train.std[0]: found 0, expected a number above 0."),
        (
            "stages.pretrain.data.augment.scale",
            [0.9, 0.1],
            "stages.pretrain.data.augment.scale: found [0.9, 0.1], expected a list of 2, the smaller first.",
        ),
        ("name", "a/b", "name: found 'a/b', expected letters, digits, '_', '-' and '.', the first a letter or digit."),
        ("stages.a b", {"type": "report"}, "stages.a b: this becomes a folder name; use letters, digits, "),
        ("stages", {}, "stages: found {}, expected a mapping of names to sections."),
        ("datasets.train.classes", [], "datasets.train.classes: found [], expected names, or null for those in the in"),
        (
            "datasets.train.image_key",
            "png;",
            "datasets.train.image_key: found 'png;', expected the extension of a member such as 'jpg', or 'png;jpg' fo",
        ),
        (
            "datasets.train.targets",
            {"class_id": "a/cls"},
            "datasets.train.targets.class_id.member: found 'a/cls', expected an extension such as 'cls' or",
        ),
        (
            "datasets.train.targets",
            "cls",
            "datasets.train.targets: found 'cls', expected a mapping of kinds, such as class_id",
        ),
        (
            "datasets.train.targets.mask",
            3,
            "datasets.train.targets.mask: found 3, expected a section with the keys",
        ),
        (
            "datasets.train.classes",
            {"mask": []},
            "datasets.train.classes: found a mapping, expected names, or null for ",
        ),
        (
            "datasets.train.classes",
            {"masks": ["a"]},
            "datasets.train.classes.masks: not a kind of target; did you mean 'mask'? Allowed: boxes, class_id, ",
        ),
        ("datasets", None, "datasets: found nothing, expected a mapping of names to sections."),
    ],
)
def test_one_fault_is_one_sentence(raw: dict[str, Any], path: str, value: Any, sentence: str) -> None:
    message = fault(raw, path, value)
    assert message.startswith(f"c.yaml: {sentence}")
    assert message[-1] in ".?"
    assert "\n" not in message


def test_several_faults_are_several_lines(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["model"]["norm"] = "pro"
    raw["cluster"] = {"workers": 0}
    lines = fault(raw, "stages.report.typo", 1).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "cluster.workers",
        "stages.pretrain.model.norm",
        "stages.report.typo",
    ]


def test_nothing_of_pydantic_shows(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"] = {"type": "pretrain", "model": {"variant": {}}, "data": 1, "duration": [], "extra": 1}
    message = fault(raw, "cluster", "none")
    for word in ("Input should", "pydantic", "Value error", "type=", "errors.", "str]", "Traceback"):
        assert word not in message
