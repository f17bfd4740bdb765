"""The settings passed to DeepSpeed; `test_ranks` measures their effects."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.config.training import EngineConfig
from pipeline.train import engine as engine_module
from pipeline.train.engine import LARGEST_BUCKET, Engine, engine_settings
from pipeline.train.stall import GROUP_TIMEOUT


def settings(stage: int, precision: str, *, parameters: int = 1000, overlaps: bool = False) -> dict[str, Any]:
    config = EngineConfig.model_construct(zero_stage=stage, precision=precision)
    return engine_settings(config, clip_grad_norm=1.0, parameters=parameters, overlaps=overlaps)


@pytest.mark.parametrize(("stage", "precision"), list(product(range(4), ("fp32", "bf16"))))
def test_gradients_are_added_up_and_reduced_in_fp32(stage: int, precision: str) -> None:
    told = settings(stage, precision)
    assert told["data_types"] == {"grad_accum_dtype": "fp32"}
    assert told["communication_data_type"] == "fp32"
    assert told["bf16"] == {"enabled": precision == "bf16", "immediate_grad_update": True}


def test_the_timer_that_waits_for_the_device_is_off() -> None:
    assert settings(2, "bf16")["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize("stage", range(4))
def test_reduction_hides_behind_the_backward_pass_where_deepspeed_can(stage: int) -> None:
    """With micro-batches of our own choice it refuses that below stage 2, where nothing is reduced before `step`."""
    assert settings(stage, "fp32", overlaps=True)["zero_optimization"]["overlap_comm"] is (stage >= 2)
    assert settings(stage, "fp32")["zero_optimization"]["overlap_comm"] is False


def test_a_bucket_holds_the_model_or_a_fair_part_of_it() -> None:
    assert settings(2, "bf16", parameters=1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    largest = settings(2, "bf16", parameters=10**9)["zero_optimization"]["reduce_bucket_size"]
    assert largest == LARGEST_BUCKET == 16 * 2**20


@pytest.mark.usefixtures("one_rank")
def test_a_rank_waits_for_the_others_for_as_long_as_the_watch_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In DeepSpeed's own group too, whose time-out NCCL would end the rank by."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    model = torch.nn.Linear(4, 1)
    config = EngineConfig.model_construct(zero_stage=2, precision="fp32")
    monkeypatch.setattr(engine_module, "LARGEST_BUCKET", 1)  # so that DeepSpeed reduces the gradients
    engine = Engine(model, torch.optim.SGD(model.parameters(), lr=1.0), config, clip_grad_norm=0.0)
    used: list[dist.ProcessGroup] = []
    reduce = dist.all_reduce

    def spied(tensor: torch.Tensor, *, group: dist.ProcessGroup, **options: Any) -> Any:
        used.append(group)
        return reduce(tensor, group=group, **options)

    monkeypatch.setattr(dist, "all_reduce", spied)
    engine.backward(engine(torch.ones(1, 4)).sum())
    assert engine.step()
    assert used
    assert dist.group.WORLD not in used
    assert {group._get_backend(engine.device).options._timeout for group in used} == {GROUP_TIMEOUT}
