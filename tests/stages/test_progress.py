from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import LOSS, Measure, Schema
from pipeline.stages.progress import Progress, clock
from pipeline.train.ledger import MetricsLedger

ROW = {
    "train/loss": 1.25,
    "train/accuracy": 0.5,
    "train/image_size": 28.0,
    "train/skipped_steps": 0.0,
    "speed/images_per_s": 1234.0,
    "speed/step_time_s": 2.0,
}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_log_file_gets_a_line_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        ledger = MetricsLedger(tmp_path, 0)
        progress.watch("pretrain", tmp_path, CLASSIFICATION, 100, 0)
        progress.poll()  # nothing to say yet
        ledger.append(10, 80, ROW)
        progress.poll()
        ledger.append(20, 160, ROW)
        progress.poll()  # too soon for another line
        progress.unwatch("pretrain")
        ledger.close()
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: step 10/100  loss 1.250  accuracy 0.500  1,234 images/s  28 px  about 3:00 left"
    ]


def test_the_speed_is_shown_in_tokens_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        ledger = MetricsLedger(tmp_path, 0)
        progress.watch("pretrain", tmp_path, CLASSIFICATION, 100, 0)
        ledger.append(10, 80, {**ROW, "speed/tokens_per_s": 61700.0})
        progress.poll()
        ledger.close()
    assert "1,234 images/s  28 px  61,700 tokens/s  about" in capsys.readouterr().err


def test_training_on_mixed_samples_shows_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        ledger = MetricsLedger(tmp_path, 0)
        progress.watch("pretrain", tmp_path, CLASSIFICATION, 100, 0)
        ledger.append(10, 80, {name: value for name, value in ROW.items() if name != "train/accuracy"})
        progress.poll()
        ledger.close()
    assert capsys.readouterr().err == "pretrain: step 10/100  loss 1.250  1,234 images/s  28 px  about 3:00 left\n"


def test_the_measures_shown_are_the_task_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = Schema((LOSS, Measure("miou", "Mean IoU", "higher", share=True), Measure("ap", "AP", "higher")), "miou")
    with Progress() as progress:
        ledger = MetricsLedger(tmp_path, 0)
        progress.watch("pretrain", tmp_path, schema, 100, 0)
        ledger.append(10, 80, {**ROW, "train/miou": 0.25, "train/loss_part": 3.0})
        progress.poll()
        ledger.close()
    assert capsys.readouterr().err.startswith("pretrain: step 10/100  loss 1.250  mean IoU 0.250  1,234 images/s")


def test_a_row_of_validation_alone_is_no_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        ledger = MetricsLedger(tmp_path, 0)
        ledger.append(0, 0, {"val/loss": 1.0})
        progress.watch("pretrain", tmp_path, CLASSIFICATION, 100, 0)
        progress.poll()
        ledger.close()
    assert capsys.readouterr().err == ""


def test_what_is_said_is_taken_word_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.say("larger: starts from [bold]pretrain[/bold] " + "x" * 200)
    assert capsys.readouterr().err == "larger: starts from [bold]pretrain[/bold] " + "x" * 200 + "\n"


def test_a_stage_that_is_not_watched_may_be_left(tmp_path: Path) -> None:
    Progress().unwatch("never")


def test_a_job_without_steps_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "progress.json").write_text('["of an earlier start", 1, 2]')
    with Progress() as progress, progress.following("probe", tmp_path):
        progress.poll()  # nothing to say yet
        (tmp_path / "progress.json").write_text('["mae: features of train", 30, 120]')
        progress.poll()
        (tmp_path / "progress.json").write_text('["mae: kNN", 0, 0]')
        progress.poll()  # too soon for another line
    assert capsys.readouterr().err.splitlines() == ["probe: mae: features of train, 25%"]
