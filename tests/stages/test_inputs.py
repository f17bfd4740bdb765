from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig, MixturePart, RandAugmentConfig
from pipeline.config.fields import is_section
from pipeline.config.probe import KnnConfig, LinearConfig, MethodsConfig, ProbeData, RetrievalConfig
from pipeline.config.section import Duration, Section
from pipeline.config.task import TaskConfig, task_class, task_types
from pipeline.config.train_stage import TrainStage
from pipeline.config.training import EngineConfig, ModelConfig, OptimizerConfig
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, TokenSchema, ViTSpec
from pipeline.models.variants import build_spec
from pipeline.shards.index import make_index
from pipeline.shards.scan import ShardRecord
from pipeline.stages import inputs as module
from pipeline.stages.inputs import VERSION, differences, inputs_digest, model_inputs, non_defaults, settings
from pipeline.stages.types.evaluate import EvaluateStage, evaluate_inputs
from pipeline.stages.types.export import ExportStage, export_inputs
from pipeline.stages.types.probe import ProbeStage, probe_inputs
from pipeline.stages.types.train import train_inputs
from pipeline.stream.source import Source
from pipeline.targets.class_id import ClassId
from pipeline.tasks.classification import Task as Classification
from pipeline.tasks.distillation import Task as Distillation

GOLDEN = Path(__file__).with_name("defaults.json")
SPEC = build_spec("nano", image_size=28, channels=3, num_classes=2)
CLASSES = ["cat", "dog"]
# Names of what another function looks up: the stages' own tests change what stands behind them.
LOOKED_UP = {
    (DatasetConfig, "shards"),
    (DatasetConfig, "classes"),
    (DataConfig, "exclude"),
    (ModelConfig, "variant"),
    (TrainStage, "init_from"),
    (Distillation, "teacher"),
    (EvaluateStage, "models"),
    (EvaluateStage, "data"),
    (EvaluateStage, "task"),
    (ProbeStage, "models"),
    (ProbeData, "train"),
    (ProbeData, "test"),
    (ExportStage, "model"),
}

Names = tuple[str, ...]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)
FULL = AugmentConfig(rand_augment=RandAugmentConfig(), mixup=0.2)
TRAIN = TrainStage(
    type="finetune",
    init_from="pretrain",
    model=ModelConfig(variant="nano", image_size=28),
    data=DataConfig(
        mixture={"a": MixturePart(augment=FULL, label_map={"kitten": "cat"}), "b": MixturePart()},
        val="val",
        augment=FULL,
        lanes=8,
    ),
    duration="5 steps",
    global_batch_size=16,
)
DATASET = DatasetConfig(shards="data")
EVALUATE = EvaluateStage(type="evaluate", models=["pretrain"], data="val")
PROBE = ProbeStage(
    type="probe",
    models=["pretrain"],
    data=ProbeData(train="a", test="val"),
    methods=MethodsConfig(knn=KnnConfig(k=[5]), linear=LinearConfig(), retrieval=RetrievalConfig()),
)
EXPORT = ExportStage(type="export", model="pretrain")


def source(name: str, config: DatasetConfig = DATASET, content: str = "0") -> Source:
    index = make_index("data", [ShardRecord("a.tar", 10, 1000, content * 64)])
    named = config.targets.of("class_id")
    member = (named and named.member) or "cls"
    return Source(name, index, config, AugmentConfig(), 1, {"class_id": ClassId((member,), (0, 1), 2)})


def train_digest(stage: TrainStage = TRAIN, **changes: Any) -> str:
    train = changes.pop("train", [source("a"), source("b")])
    given = {
        "spec": SPEC,
        "classes": CLASSES,
        "seed": 0,
        "train": train,
        "val": source("val"),
        "init_from": "weights",
    }
    return inputs_digest(train_inputs(stage, **given | changes))


def evaluate_digest(stage: EvaluateStage = EVALUATE, **changes: Any) -> str:
    given = {
        "task": Classification(),
        "models": {"pretrain": "weights"},
        "data": source("val"),
        "classes": CLASSES,
    }
    return inputs_digest(evaluate_inputs(stage, **given | changes))


def probe_digest(stage: ProbeStage = PROBE, **changes: Any) -> str:
    given = {"models": {"pretrain": "weights"}, "train": source("a"), "test": source("val")}
    return inputs_digest(probe_inputs(stage, **{**given, "classes": CLASSES, "seed": 0} | changes))


def export_digest(stage: ExportStage = EXPORT, model: str = "weights") -> str:
    return inputs_digest(export_inputs(stage, model=model))


def other(annotation: Any, value: Any) -> Any:
    """A value of a setting's type that is not `value`."""
    origin, args = get_origin(annotation), [arg for arg in get_args(annotation) if arg is not type(None)]
    match value:
        case Duration():
            return Duration(value=value.value + 1, unit=value.unit)
        case bool():
            return not value
        case int() | float() if origin is not Literal:
            return value + 1
        case dict():
            return {**value, "another": next(iter(value.values()), "name")}
        case list() | tuple():
            return [*value[:-1], other(type(value[-1]), value[-1])] if value else [other(args[0], None)]
    if origin is Literal:
        return next(arg for arg in args if arg != value)
    if origin in (Union, types.UnionType):
        return other(args[0], value)
    if hasattr(annotation, "__metadata__"):
        return other(args[0], value)
    if annotation is Duration:
        return Duration(value=7, unit="steps")
    if is_section(annotation):
        required = {name: field for name, field in annotation.model_fields.items() if field.is_required()}
        return annotation(**{name: other(field.annotation, None) for name, field in required.items()})
    plain = {str: "another", int: 7, float: 0.7, bool: True, list: ["another"], tuple: (0.7, 0.8)}
    return plain[origin or annotation]


def changed(section: Section) -> Iterator[tuple[type[Section], Names, Section]]:
    """The section with each setting in it, however deep, changed alone: (its section, its path, the whole)."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and not isinstance(value, Duration):
            for owner, path, whole in changed(value):
                yield owner, (name, *path), section.model_copy(update={name: whole})
            continue
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            continue  # names the kind of section
        yield type(section), (name,), section.model_copy(update={name: other(field.annotation, value)})
        parts = value if isinstance(value, dict) else {}
        for key, part in parts.items():
            if isinstance(part, Section):
                for owner, path, whole in changed(part):
                    yield owner, (name, key, *path), section.model_copy(update={name: {**parts, key: whole}})


@pytest.mark.parametrize(
    ("section", "digest"),
    [
        (TRAIN, train_digest),
        (EVALUATE, evaluate_digest),
        (PROBE, probe_digest),
        (EXPORT, export_digest),
        (DATASET, lambda config: train_digest(train=[source("a", config), source("b", config)])),
        (DATASET, lambda config: train_digest(val=source("val", config))),
        (DATASET, lambda config: evaluate_digest(data=source("val", config))),
    ],
    ids=["train", "evaluate", "probe", "export", "trained on", "validated on", "evaluated"],
)
def test_each_setting_changes_the_digest_or_is_listed_as_without_effect(
    section: Section, digest: Any, request: pytest.FixtureRequest
) -> None:
    """A new setting is an input until its section's `without_effect` says why it cannot change a result."""
    trains = request.node.callspec.id in ("train", "trained on")
    tried = 0
    for owner, path, whole in changed(section):
        if (owner, path[-1]) in LOOKED_UP:
            continue
        tried += 1
        same = digest(whole) == digest(section)
        normalises = owner is DatasetConfig and path[-1] in ("mean", "std")
        listed = path[-1] in owner.without_effect or path[0] in section.without_effect
        if listed or (normalises and not trains):
            assert same, f"{'.'.join(path)} is listed as without effect, but is an input"
        else:
            assert not same, (
                f"{'.'.join(path)} changes no digest: make it an input of its type of stage, or say in "
                f"{owner.__name__}.without_effect why it cannot change a result"
            )
    assert tried >= 2


def test_what_a_section_leaves_out_of_the_inputs_exists_and_has_a_reason() -> None:
    for section in every_section():
        for reasons in (section.resolved, section.without_effect):
            assert reasons.keys() <= section.model_fields.keys()
            assert all(reasons.values())


def test_digests_of_finished_classification_stages_stay() -> None:
    """As they were before there were other tasks: what was finished then is not trained again."""
    assert train_digest() == "024efadddef0840b583522a894491c2b"
    assert evaluate_digest() == "7e00f9dc68eade2d0fc64b5923988b50"
    assert export_digest() == "cdf1bbe883cf89446d7616dd5ecc554f"


def test_what_is_looked_up_is_an_input() -> None:
    assert train_digest(init_from="other weights") != train_digest()
    assert train_digest(teacher="weights") != train_digest()
    assert train_digest(teacher="other weights") != train_digest(teacher="weights")
    assert train_digest(spec=SPEC.with_backbone(depth=2)) != train_digest()
    assert train_digest(seed=1) != train_digest()
    swapped = {"class_id": ClassId(("cls",), (1, 0), 2)}
    assert train_digest(classes=["cat", "cow"]) != train_digest()
    assert train_digest(train=[source("a", content="1"), source("b")]) != train_digest()
    assert train_digest(train=[source("b"), source("a")]) != train_digest()
    assert train_digest(train=[dataclasses.replace(source("a"), targets=swapped), source("b")]) != train_digest()
    assert train_digest(val=source("val", content="1")) != train_digest()
    assert train_digest(val=dataclasses.replace(source("val"), targets=swapped)) != train_digest()
    assert train_digest(val=None) != train_digest()
    assert evaluate_digest(models={"pretrain": "other"}) != evaluate_digest()
    assert evaluate_digest(data=source("val", content="1")) != evaluate_digest()
    assert evaluate_digest(classes=["cat", "cow"]) != evaluate_digest()
    assert evaluate_digest(task=Classification(label_smoothing=0.1)) != evaluate_digest()
    assert probe_digest(models={"pretrain": "other"}) != probe_digest()
    assert probe_digest(train=source("a", content="1")) != probe_digest()
    assert probe_digest(test=source("val", content="1")) != probe_digest()
    assert probe_digest(seed=1) != probe_digest()
    assert export_digest(model="other") != export_digest()


def test_a_teacher_counts_by_its_weights_whatever_it_is_called() -> None:
    def taught_by(teacher: str, digest: str) -> str:
        return train_digest(TRAIN.model_copy(update={"task": Distillation(teacher=teacher)}), teacher=digest)

    assert taught_by("pretrain", "1") == taught_by("./export", "1") != taught_by("pretrain", "2")


def test_the_content_of_an_exclude_manifest_is_an_input_and_its_place_is_not(tmp_path: Path) -> None:
    def excluding(name: str) -> str:
        data = TRAIN.data.model_copy(update={"exclude": str(tmp_path / name)})
        return train_digest(TRAIN.model_copy(update={"data": data}))

    for name, key in (("a.jsonl", "k1"), ("b.jsonl", "k1"), ("c.jsonl", "k2")):
        (tmp_path / name).write_text(json.dumps({"shard": "a.tar", "index": 0, "key": key}) + "\n")
    assert excluding("a.jsonl") == excluding("b.jsonl") != train_digest()
    before = excluding("c.jsonl")
    assert before != excluding("a.jsonl")
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(json.dumps({"shard": "a.tar", "index": 1, "key": "k3"}) + "\n")
    assert excluding("c.jsonl") != before


def test_keys_are_those_that_are_read_whoever_names_them() -> None:
    """An index that names the member, and a config that names the same one, read the same images."""
    named = dataclasses.replace(source("val"), config=DatasetConfig(shards="data", image_key="png;jpg;jpeg;webp"))
    assert evaluate_digest(data=named) == evaluate_digest()
    index = dataclasses.replace(source("val").index, keys=source("val").index.keys.override("left.png"))
    by_index = dataclasses.replace(source("val"), index=index)
    by_config = dataclasses.replace(source("val"), config=DatasetConfig(shards="data", image_key="left.png"))
    assert evaluate_digest(data=by_index) == evaluate_digest(data=by_config) != evaluate_digest()


@given(value=PLAIN)
def test_equal_values_do_not_differ(value: Any) -> None:
    assert differences(value, value) == []


@given(before=PLAIN, after=PLAIN)
def test_unequal_values_differ_somewhere(before: Any, after: Any) -> None:
    before, after = {"a": before, "b": 1}, {"a": after, "b": 1}
    found = differences(before, after)
    assert all(path.startswith("a") for path in found)
    if before == after:
        assert found == []
    else:
        assert found
        if not isinstance(before["a"], dict) and not isinstance(after["a"], dict):
            assert len(found) == 1


def test_differences_name_the_path_and_short_values() -> None:
    before = {"settings": {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "ema": None}, "seed": 0}
    after = {"settings": {"optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}, "ema": 0.9}, "seed": 0}
    assert differences(before, after) == ["settings.optimizer.lr (0.1 to 0.2)", "settings.ema (default to 0.9)"]


def test_differences_leave_out_long_values() -> None:
    assert differences({"classes": ["a" * 70]}, {"classes": ["b"]}) == ["classes"]


def test_keys_that_come_and_go_are_named() -> None:
    assert differences({"a": 1}, {"b": 2}) == ["a (1 to default)", "b (default to 2)"]


def test_models_and_data_sets_are_added_or_removed() -> None:
    train = {"digest": "1", "image_key": "png"}
    before = {"models": {"pretrain/micro": "f3", "./a.b": "1"}, "train": {"photos": train}, "val": train}
    after = {"models": {"finer": "9c", "./a.b": "2"}, "train": {"photos": train | {"digest": "2"}, "more": train}}
    assert differences(before, after) == [
        "models.pretrain/micro (removed)",
        "models../a.b",
        "models.finer (added)",
        "train.photos.digest",
        "train.more (added)",
        "val (removed)",
    ]


def test_a_digest_is_not_shown() -> None:
    assert differences({"init_from": "a1"}, {"init_from": "b2", "exclude": "9ce6"}) == ["init_from", "exclude"]


def test_settings_of_a_section_left_at_its_defaults_are_named_one_by_one() -> None:
    before, after = {"settings": {"optimizer": {"lr": 0.1}}}, {"settings": {}}
    assert differences(before, after) == ["settings.optimizer.lr (0.1 to default)"]


class Later(OptimizerConfig):
    """The optimiser's settings in a version to come, which has one more."""

    nesterov: bool = False


def test_a_setting_that_a_later_version_adds_changes_no_digest() -> None:
    assert settings(Later()) == settings(OptimizerConfig())
    assert settings(Later(lr=0.5)) == settings(OptimizerConfig(lr=0.5))
    assert settings(Later(nesterov=True)) != settings(OptimizerConfig())
    assert settings(TRAIN.model_copy(update={"optimizer": Later()})) == settings(TRAIN)
    larger = dataclasses.make_dataclass("Larger", [("rotary", bool, False)], bases=(ViTSpec,), frozen=True)
    assert non_defaults(larger(**vars(SPEC.backbone))) == non_defaults(SPEC.backbone)
    assert non_defaults(larger(**vars(SPEC.backbone), rotary=True)) != non_defaults(SPEC.backbone)


def test_tasks_whose_settings_are_all_defaults_differ() -> None:
    class Other(TaskConfig):
        type: Literal["other"] = "other"

    assert settings(TRAIN.model_copy(update={"task": Other()}))["task"] == {"type": "other"}
    assert "task" not in settings(TRAIN)


def test_a_classifier_has_the_inputs_that_it_had_before_models_had_heads() -> None:
    written = {
        "variant": "nano",
        "channels": 3,
        "grid": [7, 7],
        "patch": [4, 4],
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 2,
        "mlp_dim": 256,
        "num_classes": 2,
    }
    assert model_inputs(SPEC) == written
    other = ModelSpec(SPEC.backbone, {"head": HeadSpec("linear", 2)}, "segmentation")
    heads = {"head": {"kind": "linear", "outputs": 2}}
    assert model_inputs(other) == {k: v for k, v in written.items() if k != "num_classes"} | {
        "heads": heads,
        "task": "segmentation",
    }


def test_null_is_not_a_default_that_is_something() -> None:
    schema: Any = create_model("Schema", __base__=Section, wait=(float | None, 10.0))
    assert inputs_digest(settings(schema(wait=None))) != inputs_digest(settings(schema()))


def test_settings_without_effect_leave_no_trace_of_their_section() -> None:
    engine = EngineConfig(zero_stage=3, activation_checkpointing="full")
    assert settings(TRAIN.model_copy(update={"engine": engine})) == settings(TRAIN)


def sections(annotation: Any) -> Iterator[type[Section]]:
    """All section classes that a type is made of."""
    if annotation is TaskConfig:
        for task in map(task_class, task_types()):
            yield from sections(task)
    elif is_section(annotation) and annotation is not Duration:
        yield annotation
        for name, field in annotation.model_fields.items():
            if name not in annotation.without_effect:
                yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


def every_section() -> list[type[Section]]:
    """The sections that inputs are made of."""
    roots = (DatasetConfig, TrainStage, EvaluateStage, ProbeStage, ExportStage)
    return list(dict.fromkeys(section for root in roots for section in sections(root)))


def name_of(section: type[Section]) -> str:
    """Every task's section is called `Task`."""
    return f"task {section.model_fields['type'].default}" if issubclass(section, TaskConfig) else section.__name__


def defaults() -> dict[str, Any]:
    """What each input that has a default is when nobody sets it."""
    found = {}
    for section in every_section():
        left_out = section.resolved.keys() | section.without_effect.keys()
        for name, field in section.model_fields.items():
            if name not in left_out and not field.is_required():
                found[f"{name_of(section)}.{name}"] = module._plain(field.get_default(call_default_factory=True))
    for kind in (ViTSpec, TokenSchema):
        for field in dataclasses.fields(kind):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if default is not dataclasses.MISSING:
                found[f"{kind.__name__}.{field.name}"] = module._plain(default)
    return found


def test_defaults_are_those_that_finished_stages_were_made_with(tmp_path: Path) -> None:
    """Inputs leave defaults out, so a default that changes would pass for the same content."""
    golden, found = json.loads(GOLDEN.read_text()), json.loads(json.dumps(defaults()))
    renewed = tmp_path / GOLDEN.name
    renewed.write_text(json.dumps({"version": VERSION, "defaults": found}, indent=1) + "\n")
    renew = f"cp {renewed} {GOLDEN}"
    assert golden["version"] == VERSION, f"the inputs have another version: {renew}"
    gone = {name: value for name, value in golden["defaults"].items() if found.get(name, "gone") != value}
    assert not gone, f"the defaults of {', '.join(gone)} changed: raise VERSION in stages/inputs.py, then {renew}"
    new = found.keys() - golden["defaults"].keys()
    assert not new, (
        f"{', '.join(sorted(new))} are new: if their defaults do what was done without them, {renew}; "
        "else raise VERSION in stages/inputs.py too"
    )
