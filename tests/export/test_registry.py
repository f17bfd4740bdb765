from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import export as registry
from pipeline.errors import ModelError
from pipeline.export import FORMATS, export
from pipeline.models import Bundle


@pytest.mark.parametrize("module", FORMATS.values())
def test_every_format_has_a_writer(module: str) -> None:
    assert callable(importlib.import_module(f"{registry.__name__}.{module}").write)


def test_every_writer_is_registered() -> None:
    files = {path.stem for path in Path(registry.__file__).parent.glob("to_*.py")}
    assert files == set(FORMATS.values())


def test_wrong_name_lists_the_right_ones(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"did you mean 'onnx'\? Known are safetensors, timm, clip, onnx, torch-export"
    ):
        export("onxn", make_bundle(), tmp_path)
