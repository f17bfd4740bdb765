from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.export import command as export_command
from pipeline.cli.predict import command
from pipeline.errors import DataError, ModelError
from pipeline.models.bundle import Preprocess, load_bundle, save_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec

CLASSES = ["ankle boot", "bag", "coat"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=1)
    state = MiniViT.from_spec(spec).state_dict()
    return save_bundle(tmp_path / "model", state, spec, Preprocess((0.5,), (0.5,), 1, (8, 8)), CLASSES, {})


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for level, path in enumerate(paths):
        Image.fromarray(np.full((20, 12), 100 * level, np.uint8)).save(path)
    return [str(path) for path in paths]


def test_prints_labels_with_probabilities(model: Path, images: list[str]) -> None:
    result = CliRunner().invoke(command, [str(model), *images, "--top", "2"], catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[0::3] == images
    for line in (line for at, line in enumerate(lines) if at % 3):
        probability, name = line.strip().split("%  ")
        assert name in CLASSES
        assert 0 <= float(probability) <= 100


def test_json_gives_the_probabilities_of_each_image(model: Path, images: list[str]) -> None:
    result = CliRunner().invoke(command, [str(model), *images, "--json"], catch_exceptions=False)
    rows = json.loads(result.output)
    assert [row["image"] for row in rows] == images
    for row in rows:
        assert set(row["classes"]) == set(CLASSES)
        assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)


def test_an_unreadable_image_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    result = CliRunner().invoke(command, [str(model), str(tmp_path / "torn.png")])
    assert isinstance(result.exception, DataError)
    assert "torn.png" in str(result.exception)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, images: list[str]) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "none"), images[0]])
    assert isinstance(result.exception, ModelError)


def test_at_least_one_image_and_one_class(model: Path, images: list[str]) -> None:
    assert CliRunner().invoke(command, [str(model)]).exit_code == 2
    assert CliRunner().invoke(command, [str(model), images[0], "--top", "0"]).exit_code == 2


def test_an_export_is_usable_as_a_model(model: Path, tmp_path: Path, images: list[str]) -> None:
    result = CliRunner().invoke(export_command, [str(model), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert load_bundle(result.output.strip()).classes == CLASSES
    first, second = (
        CliRunner().invoke(command, [str(path), *images, "--json"], catch_exceptions=False).output
        for path in (model, result.output.strip())
    )
    assert first == second


def test_an_unknown_format_lists_the_known_ones(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(export_command, [str(model), "--format", "onix", "--out", str(tmp_path / "out")])
    assert result.exception is not None
    assert "onnx" in str(result.exception)
