from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.report.collect import read_run
from pipeline.report.positions import MAX_MAPS, collect_maps, mosaic, similarity

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(st.data(), GRIDS, st.integers(0, 3))
def test_similarity_is_that_of_each_pair_of_patches_whatever_comes_before_them(data, grid, prefix) -> None:
    height, width = grid
    floats = st.floats(-10, 10, width=32).filter(lambda value: abs(value) > 1e-3)
    positions = data.draw(arrays(np.float32, (prefix + height * width, 3), elements=floats))
    found = similarity(positions, grid)
    patches = positions[prefix:].astype(np.float64)
    for i in range(height * width):
        for j in range(height * width):
            cosine = patches[i] @ patches[j] / np.linalg.norm(patches[i]) / np.linalg.norm(patches[j])
            assert abs(found[i // width, i % width, j // width, j % width] - cosine) < 1e-5


def test_positions_of_zero_length_are_similar_to_nothing() -> None:
    assert not similarity(np.zeros((5, 8), np.float32), (2, 2)).any()


@given(GRIDS)
def test_a_mosaic_holds_every_map_once(grid) -> None:
    height, width = grid
    maps = np.arange((height * width) ** 2, dtype=np.float32).reshape(height, width, height, width)
    canvas = mosaic(maps)
    assert sorted(canvas[~np.isnan(canvas)]) == sorted(maps.flatten())


def test_of_a_large_grid_evenly_spaced_patches_are_shown() -> None:
    maps = np.zeros((30, 16, 30, 16), np.float32)
    shown = (~np.isnan(mosaic(maps))).sum() / (30 * 16)
    assert shown == MAX_MAPS * MAX_MAPS


def test_maps_tell_before_and_after_only_where_something_was_interpolated(built_run: Path) -> None:
    run = read_run(built_run)
    grids = {branch.id: [(maps.slug, maps.grid) for maps in collect_maps(run, branch)] for branch in run.trained}
    assert grids["pretrain/nano"] == [("end", (7, 7))]
    assert grids["finetune-56"] == [("before", (7, 7)), ("start", (14, 14)), ("end", (14, 14))]
    assert grids["finetune-patch2"] == [("before", (14, 14)), ("end", (14, 14))]
