from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.task import task_class
from pipeline.errors import ConfigError, ModelError
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter
from pipeline.stages.data import build_targets
from pipeline.stages.tokenizer import captions_of, stage_tokenizer
from pipeline.stream.source import Source
from pipeline.tasks.task import BaseTask
from pipeline.text.tokenizer import Tokenizer
from pipeline.text.training import train_tokenizer
from pipeline.train.job import Dataset

CAPTIONS = ["a red boot", "a blue dress", "", "an old coat"]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two shards of four samples; the third of each has an empty caption."""
    for number in (0, 1):
        with TarWriter(tmp_path / "data" / f"a-{number}.tar") as tar:
            for row, caption in enumerate(CAPTIONS):
                tar.write(f"s{number}{row}", {"png": b"\xff" * 5000, "txt": f"{caption}".encode()})
            tar.finish()
    config = DatasetConfig(shards=str(tmp_path / "data"))
    index = build_index(config.shards, workers=1)
    targets = build_targets("t", Dataset(config, index), ["text"], {})
    return Source("t", index, config, AugmentConfig(), 1, targets)


def task(**settings: object) -> tuple[BaseTask, ModelSpec]:
    chosen = task_class("clip")(text={"length": 8}, **settings)
    return chosen, chosen.model_spec(build_backbone("nano", image_size=8), 0)


def tokenizer(settings: tuple[BaseTask, ModelSpec], source: Source, folder: Path, parent: Preprocess | None = None):
    return stage_tokenizer(*settings, [source], parent, folder, "stages.pretrain")


def test_the_captions_of_some_samples_are_read(source: Source) -> None:
    good = [caption for caption in CAPTIONS if caption]
    assert list(captions_of([source], 100)) == good * 2
    assert list(captions_of([source], 4)) == [*good, good[0]]


def test_it_is_trained_once_and_kept(source: Source, tmp_path: Path) -> None:
    found = tokenizer(task(tokenizer={"size": 270}), source, tmp_path)
    assert found == train_tokenizer([caption for caption in CAPTIONS if caption] * 2, 270, 8)
    assert (tmp_path / "tokenizer.json").read_text() == found.content
    other = train_tokenizer(["something else"], 300, 8)
    (tmp_path / "tokenizer.json").write_text(other.content)
    assert tokenizer(task(), source, tmp_path) == other


def test_a_file_says_how_many_tokens_there_are(source: Source, tmp_path: Path) -> None:
    given = train_tokenizer(["one two three"], 263, 8)
    (tmp_path / "given.json").write_text(given.content)
    settings = task(tokenizer=str(tmp_path / "given.json"))
    assert settings[1].heads["text_tower"].options["tokens"] == given.size == 263
    assert tokenizer(settings, source, tmp_path / "stage") == given
    (tmp_path / "given.json").write_text("no tokenizer")
    with pytest.raises(ModelError, match=r"^tokenizer.file: /.*given.json: not a tokenizer.json"):
        task(tokenizer=str(tmp_path / "given.json"))
    with pytest.raises(ModelError, match=r"none.json: cannot be read"):
        task(tokenizer=str(tmp_path / "none.json"))


def test_a_stage_goes_on_with_the_tokenizer_of_the_model_it_starts_from(source: Source, tmp_path: Path) -> None:
    earlier = train_tokenizer(["one two three"], 263, 5)
    parent = Preprocess((0.5,) * 3, (0.5,) * 3, 3, (8, 8), tokenizer=earlier)
    assert tokenizer(task(), source, tmp_path / "one", parent) == Tokenizer(earlier.content, 8)
    other = train_tokenizer(["four"], 259, 8)
    (tmp_path / "other.json").write_text(other.content)
    assert tokenizer(task(tokenizer=str(tmp_path / "other.json")), source, tmp_path / "two", parent) == other


def test_no_good_caption_is_reported(source: Source, tmp_path: Path) -> None:
    unreadable = build_targets(
        "t", Dataset(DatasetConfig(shards="x", targets={"text": "png"}), source.index), ["text"], {}
    )
    source = replace(source, targets=unreadable)
    with pytest.raises(ConfigError, match=r"^stages.pretrain.data: found no good caption to train a tokenizer on"):
        tokenizer(task(), source, tmp_path / "stage")


def test_other_tasks_have_none(source: Source, tmp_path: Path) -> None:
    classifier = task_class("classification")()
    spec = classifier.model_spec(build_backbone("nano", image_size=8), 3)
    assert tokenizer((classifier, spec), source, tmp_path) is None
