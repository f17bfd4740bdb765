from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import load_model
from pipeline.errors import ModelError
from pipeline.export import export
from pipeline.models import Bundle, MiniViT, Preprocess, build_spec
from pipeline.models.integrity import MANIFEST


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = build_spec("nano", image_size=8, num_classes=2, depth=1)
    state = MiniViT.from_spec(spec).state_dict()
    bundle = Bundle(state, spec, Preprocess((0.5,) * 3, (0.5,) * 3, 3, (8, 8)), None, {})
    return export("safetensors", bundle, tmp_path / "model")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_file_that_was_changed_or_lost_is_named(folder: Path, name: str) -> None:
    load_model(folder)
    whole = (folder / name).read_bytes()
    for changed in (whole[:-1] + bytes([whole[-1] ^ 1]), whole + b" "):
        (folder / name).write_bytes(changed)
        with pytest.raises(ModelError, match=rf"{name}: does not match its SHA-256 in manifest\.json; exp"):
            load_model(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}"):
        load_model(folder)


def test_the_card_is_for_people_to_write_on(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    load_model(folder)


def test_a_folder_of_an_earlier_version_has_no_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[")
    with pytest.raises(ModelError, match=r"manifest\.json: cannot be read"):
        load_model(folder)
    (folder / MANIFEST).unlink()
    load_model(folder)
