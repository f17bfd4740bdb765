"""The operations and tokens that each task declares, given its views."""

from __future__ import annotations

from pipeline.config.views import ViewGroup
from pipeline.models.model_costs import forward_flops
from pipeline.models.variants import build_backbone
from pipeline.tasks.classification import Task as Classification


class Several(Classification):
    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        return {"global": ViewGroup(2), "local": ViewGroup(6, (8, 8))}


def test_work_and_tokens_are_those_of_all_views() -> None:
    task, backbone = Several(), build_backbone("nano", image_size=16, patch_size=4, channels=1, registers=1)
    spec = task.model_spec(backbone, 3)
    assert task.seen((16, 16)) == [(2, (16, 16)), (6, (8, 8))]
    assert task.encoder_tokens(spec, (16, 16), (4, 4)) == 2 * (16 + 2) + 6 * (4 + 2)
    assert task.encoder_tokens(spec, (32, 16), (4, 4)) == 2 * (32 + 2) + 6 * (4 + 2)
    whole, part = (forward_flops(spec, size, (4, 4)) for size in ((16, 16), (8, 8)))
    assert task.forward_flops(spec, (16, 16), (4, 4)) == 2 * whole + 6 * part
    assert Classification().forward_flops(spec, (16, 16), (4, 4)) == whole
