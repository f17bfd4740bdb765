from __future__ import annotations

import pkgutil
import subprocess
import sys
from typing import get_args

import pytest

from pipeline.config.stage import TYPES, type_module
from pipeline.stages import types
from pipeline.stages.stage_type import StageType


@pytest.mark.parametrize("name", TYPES)
def test_each_type_has_a_module_whose_section_accepts_it(name: str) -> None:
    declared = type_module(name).TYPE
    assert isinstance(declared, StageType)
    assert name in get_args(declared.section.model_fields["type"].annotation)


def test_each_module_is_a_type() -> None:
    assert {module.name for module in pkgutil.iter_modules(types.__path__)} == set(TYPES.values())


def test_declaring_a_type_imports_neither_torch_nor_ray() -> None:
    """A plan reads every type that its pipeline has."""
    program = (
        f"import sys; from pipeline.config.stage import type_module; [type_module(name) for name in {list(TYPES)}]; "
        "print(sorted({'torch', 'ray', 'deepspeed', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
