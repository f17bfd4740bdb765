"""A loss that couples samples is that of the global batch, for any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Results = dict[str, Any]
SHARES = [3, 0, 5]
CASES = {  # micro-batches, ZeRO stage, whether activations are computed again
    "one": (1, 2, False),
    "more than samples": (7, 0, False),
    "partitioned weights": (4, 3, True),
}


@pytest.fixture(scope="module")
def alone(run_ranks: Callable[..., list[Results]], tmp_path_factory: pytest.TempPathFactory) -> Results:
    cases = {"one": ["gradient", ["scattered", [8], 1]], "several": ["gradient", ["scattered", [8], 3]]}
    cases["uncoupled"] = ["gradient", ["vit", [8], 1]]
    return run_ranks(1, tmp_path_factory.mktemp("one") / "ranks", cases)[0]


@pytest.fixture(scope="module")
def together(run_ranks: Callable[..., list[Results]], tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    cases = {
        name: ["gradient", ["scattered", SHARES, micro, stage, again]] for name, (micro, stage, again) in CASES.items()
    }
    return run_ranks(3, tmp_path_factory.mktemp("three") / "ranks", cases)


def same(found: Results, expected: Results) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["gradient"].keys() == expected["gradient"].keys()
    for name, gradient in expected["gradient"].items():
        torch.testing.assert_close(found["gradient"][name], gradient, atol=2e-6, rtol=1e-5)


def test_micro_batches_do_not_show(alone: Results) -> None:
    same(alone["several"], alone["one"])
    change = alone["one"]["gradient"]["mlp_head.1.weight"] - alone["uncoupled"]["gradient"]["mlp_head.1.weight"]
    assert change.abs().max() > 1e-3, "the coupled part counts"


@pytest.mark.parametrize("case", CASES)
def test_ranks_do_not_show(alone: Results, together: list[Results], case: str) -> None:
    if CASES[case][1] == 3:  # each rank has slices of the weights
        pieces = {
            name: torch.cat([rank[case]["gradient"][name] for rank in together]) for name in alone["one"]["gradient"]
        }
        whole = {name: pieces[name][: value.numel()].view_as(value) for name, value in alone["one"]["gradient"].items()}
        same({"loss": together[0][case]["loss"], "gradient": whole}, alone["one"])
    else:
        for rank in together:
            same(rank[case], alone["one"])
