import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.errors import CheckpointError
from pipeline.metrics.pictures import save_picture
from pipeline.metrics.schema import LOSS, Measure, Schema
from pipeline.report.page import SECTIONS, write_report


@pytest.fixture(scope="module")
def page(built_run: Path) -> str:
    return write_report(built_run).read_text(encoding="utf-8")


def test_the_page_asks_no_server_for_anything(page: str) -> None:
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert links
    assert {link.split(":")[0] if ":" in link else link[0] for link in links} == {"data", "#"}
    assert "<script" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_every_section_is_there_once_and_ids_are_unique(page: str) -> None:
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert all(ids[section] == 1 for section in SECTIONS)
    assert [name for name, count in ids.items() if count > 1] == []
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_figures_of_the_run_are_on_it(page: str) -> None:
    for text in ("quickstart", "8 min 11 s", "pretrain/micro", "71.0 %", "85.7 %", "693 k", "Ankle boot", "pos_embed"):
        assert text in page
    assert "workers were lost (rank 1 died with SIGKILL)" in page
    assert "What is missing" not in page
    assert "No stage has found a bad sample" in page


def test_every_picture_has_words(page: str) -> None:
    assert all(alt.strip() for alt in re.findall(r'role="img" aria-label="([^"]*)"', page))
    assert "finetune-56 val: 0.71 at step 0" in page
    assert re.findall(r"<img(?![^>]*\balt=)", page) == []


def test_colours_follow_the_reader_s_scheme(page: str) -> None:
    drawings = "".join(re.findall(r"<svg aria-hidden.*?</svg>", page, flags=re.S))
    assert "var(--c1)" in drawings
    assert "#2f6fde" not in drawings


def test_an_unfinished_run_says_what_is_missing(unfinished_run: Path) -> None:
    page = write_report(unfinished_run).read_text(encoding="utf-8")
    assert "pretrain/micro failed: cluster: 2 workers ask for 8 CPUs, there are 2." in page
    assert "finetune-56 has not started." in page
    assert "No model has been evaluated yet." in page
    assert "No stage has saved a model" in page


def note_bad(folder: Path, name: str, lines: list[tuple[str, str]]) -> None:
    """A quarantine manifest of (key, reason)."""
    entries = [
        {"dataset": "t", "shard": "train-000000.tar", "index": i, "key": key, "reason": reason}
        for i, (key, reason) in enumerate(lines)
    ]
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_bad_samples_are_on_the_page(finished_run: Path) -> None:
    home = finished_run / "stages" / "finetune-56"
    note_bad(home, "quarantine.rank0-worker0.jsonl", [("0000", "no label member (found png)"), ("0001", "<torn>")])
    note_bad(home, "quarantine-val.rank0-worker0.jsonl", [("7", "no readable image header")])
    status = json.loads((home / "status.json").read_text())
    status["result"] = {"bad_samples": {"train": {"samples": 400}}}
    (home / "status.json").write_text(json.dumps(status))
    page = write_report(finished_run).read_text(encoding="utf-8")
    assert "2 of 400" in page
    assert "no label member (found png) (1, such as train-000000.tar/0000); &lt;torn&gt; (1, such as" in page
    assert "1 so far" in page  # of how many, a finished stage says
    assert "stages/finetune-56/quarantine-val.*.jsonl" in page
    assert "No stage has found a bad sample" not in page


def test_bad_samples_of_an_evaluation_go_by_the_name_of_its_data(finished_run: Path) -> None:
    source = finished_run / "pipeline.yaml"
    config = yaml.safe_load(source.read_text())
    config["datasets"]["photos"] = config["datasets"]["test"]
    config["stages"]["test"]["data"] = "photos"
    source.write_text(yaml.safe_dump(config))
    note_bad(finished_run / "stages" / "test", "quarantine.rank0-worker0.jsonl", [("8", "no readable image header")])
    assert "<td>photos</td>" in write_report(finished_run).read_text(encoding="utf-8")


def test_a_damaged_manifest_costs_the_table_and_is_named(finished_run: Path) -> None:
    note_bad(finished_run / "stages" / "finetune-56", "quarantine.rank0-worker0.jsonl", [("0", "torn")])
    (finished_run / "stages" / "finetune-56" / "quarantine.rank0-worker0.jsonl").write_text("not json\n{}\n")
    page = write_report(finished_run).read_text(encoding="utf-8")
    assert "The table of bad samples could not be drawn" in page
    assert "quarantine.rank0-worker0.jsonl:1 is not a line" in page


def test_a_task_shows_what_it_measures_and_has_drawn(unfinished_run: Path) -> None:
    """The page knows the task only from the files of the stages."""
    stages, loss = unfinished_run / "stages", Measure("noise", "Noise left", "lower")
    nano, test = stages / "pretrain" / "nano", stages / "test"
    row = {"step": 100, "time": 9.0, "train/noise": 0.75, "val/noise": 0.5}
    (nano / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    status = json.loads((nano / "status.json").read_text())
    (nano / "status.json").write_text(json.dumps({**status, "schema": Schema((loss,), "noise").to_dict()}))
    schema = Schema((LOSS, Measure("mean_iou", "Mean IoU", "higher", share=True)), "mean_iou")
    models = {"./export": {"loss": 0.25, "mean_iou": 0.625, "samples": 9, "bad_samples": 0}}
    for name, caption in (("b", "a second scene"), ("a", "a <first> scene")):
        save_picture(test, name, np.zeros((4, 6, 3), np.uint8), "Class maps", caption)
    (test / "per_class.csv").write_text("model,class,iou\n./export,boot,0.5\nother,boot,0.25\n")
    (test / "evaluation.json").write_text(json.dumps({"schema": schema.to_dict(), "models": models}))
    page = write_report(unfinished_run).read_text(encoding="utf-8")
    for text in (
        "noise left 0.5 val",
        "Noise left per stage",
        "<dd>62.50 %</dd>",
        "Class maps <small>test</small>",
        "0.500",
    ):
        assert text in page
    assert page.index("a &lt;first&gt; scene") < page.index("a second scene")
    assert "Accuracy" not in page
    assert "No picture" not in page  # nothing was said of classes


def test_a_detector_shows_its_precision_and_recall(unfinished_run: Path) -> None:
    test, schema = unfinished_run / "stages" / "test", Schema((Measure("map", "mAP", "higher", share=True),), "map")
    points = [f"./export,boot,{recall:.2f},{1 - recall:.2f}" for recall in (0.0, 0.5, 1.0)]
    test.mkdir()
    (test / "precision_recall.csv").write_text("\n".join(["model,class,recall,precision", *points, ""]))
    models = {"./export": {"map": 0.5, "samples": 9, "bad_samples": 0}}
    (test / "evaluation.json").write_text(json.dumps({"schema": schema.to_dict(), "models": models}))
    page = write_report(unfinished_run).read_text(encoding="utf-8")
    assert "Precision against recall of ./export on " in page
    assert "Average precision: boot 0.50." in page


def test_a_run_that_has_only_a_pipeline_has_a_page(unfinished_run: Path) -> None:
    shutil.rmtree(unfinished_run / "stages")
    assert "No stage has logged anything yet." in write_report(unfinished_run).read_text(encoding="utf-8")


def test_a_damaged_bundle_costs_its_pictures_and_is_named(finished_run: Path) -> None:
    (finished_run / "stages" / "pretrain" / "nano" / "model" / "model.safetensors").write_bytes(b"torn")
    page = write_report(finished_run).read_text(encoding="utf-8")
    assert "Position similarity of pretrain/nano could not be drawn" in page
    assert "Attention of pretrain/nano could not be drawn" in page
    assert "Attention of finetune-56 could not be drawn" not in page


def test_names_from_outside_are_text_and_never_markup(finished_run: Path) -> None:
    home = finished_run / "stages"
    (home / "pretrain" / "nano" / "events.jsonl").write_text(
        json.dumps({"time": 5.0, "event": "<b>", "message": "<script>alert(1)</script>"}) + "\n"
    )
    with np.load(home / "test" / "confusion.npz") as arrays:
        kept = dict(arrays)
    kept["classes"][0] = "<img src=x>"
    np.savez(home / "test" / "confusion.npz", **kept)
    page = write_report(finished_run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
