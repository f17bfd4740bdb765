from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli.export import command as export_command
from pipeline.cli.predict import command, parsed
from pipeline.errors import DataError, ModelError
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter

CLASSES = ["ankle boot", "bag", "coat"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=1)
    state = MiniViT.from_spec(spec).state_dict()
    return Bundle(state, spec, Preprocess((0.5,), (0.5,), 1, (8, 8)), CLASSES).save(tmp_path / "model")


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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_results_lie_under_the_images_own_names(model: Path, tmp_path: Path) -> None:
    for level, name in enumerate(("a/x.png", "b/x.png", "b/deep/x.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((90, 120), 100 * level, np.uint8)).save(path)
    out = tmp_path / "photos" / "out"
    for _ in range(2):
        result = run(model, tmp_path / "photos", "--out", out, "--batch-size", "2", "--top", "2")
        assert result.exit_code == 0, result.output
        rows = lines(out)
        assert [row["files"] for row in rows] == [
            [f"{name}.drawn.jpg"] for name in ("a/x.png", "b/deep/x.jpg", "b/x.png")
        ]
        for row in rows:
            assert (row["height"], row["width"]) == (90, 120)
            assert len(row["classes"]) == 2
            with Image.open(out / row["files"][0]) as drawn:
                assert drawn.size == (120, 90)
        first = snapshot(out)
    assert snapshot(out) == first
    printed = json.loads(run(model, rows[0]["image"], "--json", "--top", "2").output)
    assert printed == [{"image": rows[0]["image"], "classes": pytest.approx(rows[0]["classes"])}]


def test_a_broken_image_is_reported_and_costs_no_other(model: Path, images: list[str], tmp_path: Path) -> None:
    (tmp_path / "a1.png").write_bytes(Path(images[0]).read_bytes()[:40])
    out = tmp_path / "out"
    result = run(model, tmp_path, tmp_path / "none.png", "--out", out)
    assert isinstance(result.exception, DataError)
    assert "2 of 4 images could not be read" in str(result.exception)
    assert [row["image"] for row in lines(out)] == images
    told = (out / "failed.txt").read_text().splitlines()
    assert [line.partition("\t")[0] for line in told] == [str(tmp_path / "a1.png"), str(tmp_path / "none.png")]
    assert told[1].endswith("\tNo such file or directory")
    (tmp_path / "a1.png").unlink()
    assert run(model, tmp_path, "--out", out).exit_code == 0
    assert not (out / "failed.txt").exists()


def test_shards_are_images_too(model: Path, images: list[str], tmp_path: Path) -> None:
    with TarWriter(tmp_path / "s" / "train-000000.tar") as tar:
        for number, path in enumerate(images):
            tar.write(f"{number:03d}", {"png": Path(path).read_bytes()})
        tar.finish()
    build_index(str(tmp_path / "s"))
    assert run(model, tmp_path / "s", "--out", tmp_path / "out").exit_code == 0
    found = [(row["files"], row["classes"]) for row in lines(tmp_path / "out")]
    assert [files for files, _ in found] == [[f"train-000000/{key}.drawn.jpg"] for key in ("000", "001")]
    printed = json.loads(run(model, tmp_path / "s", "--json").output)
    assert [row["classes"] for row in printed] == [pytest.approx(classes) for _, classes in found]


def test_options_without_a_meaning_are_refused(model: Path, images: list[str], tmp_path: Path) -> None:
    assert run(model, images[0], "--coco").exit_code == 2
    assert run(model, images[0], "--out", tmp_path / "out", "--option", "top_k").exit_code == 2
    assert run(model, images[0], "--out", tmp_path / "out", "--coco-ids", "x").exit_code == 2
    with pytest.raises(ModelError, match="--coco: the model's task predicts no boxes"):
        run_raising(model, images[0], "--out", tmp_path / "out", "--coco")
    with pytest.raises(ModelError, match="predict: topk is not an option of a classification model"):
        run_raising(model, images[0], "--out", tmp_path / "out", "--option", "topk=3")
    assert run(model, images[0], "--out", tmp_path / "out", "--option", "top_k=1").exit_code == 0
    assert len(lines(tmp_path / "out")[0]["classes"]) == 1


def test_options_are_read_as_configs_are() -> None:
    assert parsed(("score=1e-3", "boxes=[[0, 0, 9, 9]]")) == {"score": 0.001, "boxes": [[0, 0, 9, 9]]}


def run_raising(*arguments: object) -> None:
    CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
