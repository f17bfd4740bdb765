from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.tracking.patience import ANSWER_S, FIRST_ANSWER_S, UPLOAD_BYTES_PER_S, VARIABLE, Patience


def test_a_server_that_answers_gets_more_time_and_an_upload_as_much_as_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "to be restored")
    monkeypatch.delenv(VARIABLE)
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(100 * UPLOAD_BYTES_PER_S)
    patience = Patience()
    patience.not_heard()
    assert os.environ[VARIABLE] == str(FIRST_ANSWER_S)
    patience.heard()
    assert os.environ[VARIABLE] == str(ANSWER_S)
    with patience.uploading(tmp_path), patience.uploading(tmp_path / "missing"):
        assert os.environ[VARIABLE] == str(ANSWER_S + 100)
    assert os.environ[VARIABLE] == str(ANSWER_S)
    patience.not_heard()
    assert os.environ[VARIABLE] == str(FIRST_ANSWER_S)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "300")
    patience = Patience()
    patience.not_heard()
    patience.heard()
    assert os.environ[VARIABLE] == "300"
