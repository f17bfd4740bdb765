from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import paths
from pipeline.cli.shards import group
from pipeline.shards.index_file import load_index


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "home" / "data"))
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path


def test_tildes_and_variables_make_no_folders_of_their_name(here: Path) -> None:
    make = ["make", "fractals", "--out=~/data", "--classes=2", "--per-class=4", "--size=16", "--workers=1"]
    (here / "home" / "names.txt").write_text("cat\ndog\n")
    for command in (make, ["index", "$DATA/train-{000000..000000}.tar", "--classes=~/names.txt"]):
        result = CliRunner().invoke(group, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert load_index(str(here / "home" / "data")).classes == {"class_id": ["cat", "dog"]}
    assert [path.name for path in here.iterdir()] == ["home"]


def test_an_unset_variable_is_refused() -> None:
    result = CliRunner().invoke(group, ["reshard", "data", "--out=$UNSET/x"])
    assert result.exit_code == 2
    assert "found '$UNSET/x', expected a path whose variables are set, but $UNSET is not" in result.output


def test_a_file_that_is_there_means_itself(here: Path) -> None:
    for name in ("a$UNSET.jpg", "~$letter.jpg"):
        (here / name).touch()
        assert paths.UserPath(path_type=Path).convert(name, None, None) == Path(name)
