from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.export import FORMATS, card, to_hf, to_onnx
from pipeline.export.story import DataUse, Figure, Step, Story
from pipeline.metrics.accuracy import ACCURACY
from pipeline.metrics.schema import LOSS
from pipeline.models import Bundle

STORY = Story(
    name="quick",
    steps=(
        Step("pretrain", "pretrain", None, None, 640, None, {"duration": "10 steps", "data": {"train": "a|b"}}),
        Step("finer", "finetune", "pretrain", "teacher", 64, "9 copied, 1 resized", {"optimizer": {"lr": 0.001}}),
    ),
    data=(DataUse("pretrain", "train", "a|b", "0123abcd"),),
    figures=(
        Figure(ACCURACY, 0.75, "test", "4567", 200, (0.6857, 0.8051), "Wilson"),
        Figure(LOSS, 0.25, "val", "89ab", 200, (0.2, 0.3), "bootstrap"),
        Figure(LOSS, 0.5, "test", "4567", 200, None),
    ),
    license="apache-2.0",
)


def test_the_hub_reads_its_header(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = replace(make_bundle(), provenance={"stage": "finer"})
    card.write_card(to_hf, bundle, tmp_path, STORY)
    found = ModelCard.load(tmp_path / "README.md")
    header = found.data.to_dict()
    assert (header["license"], header["library_name"]) == ("apache-2.0", "transformers")
    assert header["pipeline_tag"] == "image-classification"
    results = found.data.eval_results
    assert results is not None
    assert found.data.model_name == "quick / finer"
    assert [(r.metric_type, r.metric_value, r.dataset_revision) for r in results] == [
        ("accuracy", 0.75, "4567"),
        ("loss", 0.25, "89ab"),
        ("loss", 0.5, "4567"),
    ]


def test_it_tells_data_figures_recipe_and_lineage(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    card.write_card(to_hf, make_bundle(), tmp_path / "mine", STORY)
    text = (tmp_path / "mine" / "README.md").read_text()
    for told in (
        "| pretrain | train | a\\|b | `0123abcd` |",
        "| Accuracy | 75.00 % | 68.57 % to 80.51 % (Wilson) | test | 200 |",
        "| Loss | 0.25 | 0.2 to 0.3 (bootstrap) | val | 200 |",
        "| Loss | 0.5 |  | test | 200 |",
        "independent samples. bootstrap: a bootstrap over whole images",
        "| finer | finetune | pretrain | teacher | 64 |",
        "Surgery: 9 copied, 1 resized",
        "  lr: 0.001",
        'AutoModelForImageClassification.from_pretrained("mine")',
        "Classes: ant, bee, cat.",
        "weighs red, green and blue",
    ):
        assert told in text


def test_a_model_of_which_nothing_is_known_has_one_too(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = replace(make_bundle(), provenance={}, classes=None)
    card.write_card(to_onnx, bundle, tmp_path, Story())
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.license is None
    assert "These weights were not measured." in found.text


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_how_it_is_used(name: str, make_bundle: Callable[..., Bundle]) -> None:
    import importlib

    module = importlib.import_module(f"pipeline.export.{FORMATS[name].module}")
    assert module.USE.format(folder="somewhere")
    assert all(isinstance(note, str) for note in module.notes(make_bundle()))
