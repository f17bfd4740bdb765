import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.report.collect import read_run
from pipeline.report.graph import BOX_HEIGHT, BOX_WIDTH, draw_graph, layers, place, sources


def test_layers_follow_what_starts_from_what(built_run: Path) -> None:
    rows = [[branch.id for branch in row] for row in layers(read_run(built_run))]
    assert rows == [
        ["pretrain/nano", "pretrain/micro"],
        ["finetune-56"],
        ["finetune-patch2"],
        ["test", "export", "report"],
    ]


def test_an_arrow_is_left_out_where_a_longer_way_says_it(built_run: Path) -> None:
    run = read_run(built_run)
    assert [branch.id for branch in sources(run, run.by_id["test"])] == ["pretrain/nano", "finetune-patch2"]


@pytest.mark.parametrize("vertical", [False, True])
def test_boxes_lie_within_the_drawing_and_apart(built_run: Path, vertical: bool) -> None:
    boxes, width, height = place(read_run(built_run), vertical)
    assert len(boxes) == 7
    for box in boxes:
        assert 0 <= box.x <= width - BOX_WIDTH
        assert 0 <= box.y <= height - BOX_HEIGHT
    for one, other in combinations(boxes, 2):
        assert abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT


def test_the_drawing_tells_state_size_patch_and_accuracy(built_run: Path) -> None:
    svg = ET.fromstring(draw_graph(read_run(built_run)))
    texts = {text.text for text in svg.iter("text")}
    assert {"finetune-56", "finetune · finished", "micro · 56 px · patch 4"} <= texts
    assert any(str(text).endswith("% test") for text in texts)
