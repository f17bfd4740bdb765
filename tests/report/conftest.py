import runpy
import shutil
from pathlib import Path

import pytest

SAMPLES = runpy.run_path(str(Path(__file__).with_name("sample_run.py")))


@pytest.fixture(scope="session")
def built_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests only read."""
    return SAMPLES["build_run"](tmp_path_factory.mktemp("finished"))


@pytest.fixture
def finished_run(built_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may damage; its shards stay where they are."""
    return Path(shutil.copytree(built_run, tmp_path / built_run.name))


@pytest.fixture
def unfinished_run(tmp_path: Path) -> Path:
    return SAMPLES["build_unfinished_run"](tmp_path)
