"""The direction of imports, and the modules that the command line may load at start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from importlinter import api

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "ray", "deepspeed", "mlflow", "timm", "cv2", "matplotlib", "pandas")


def test_imports_obey_the_contracts() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_package_has_its_place_in_the_layers() -> None:
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {module.strip() for layer in layers for module in layer.split("|")}
    present = {
        f"pipeline.{path.stem}" for path in (ROOT / "pipeline").iterdir() if not path.name.startswith(("_", "py."))
    }
    assert present == placed


def test_help_loads_no_heavy_library() -> None:
    script = f"import sys, pipeline.cli.main; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
