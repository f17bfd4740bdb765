"""`minivit run CONFIG train.replay_slots=A:B`: runs the batch that stopped a run again, in detail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pipeline.checkpoints.selection import Selection, newest_valid
from pipeline.checkpoints.storage import open_storage
from pipeline.cluster.launch import launch
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError
from pipeline.stages.context import RunContext
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.resolve import Branch, stage_branches
from pipeline.stages.types.train.setup import TrainSetup
from pipeline.train.replay import NAME, ReplayJob, replay_worker


def replay(context: RunContext, slots: str) -> None:
    """Run one batch of an unfinished stage again on a single worker, and report the findings.

    Raises `ConfigError` if no stage has begun, or the slots are not one of its batches.
    """
    branch, status = stopped_branch(context)
    setup = TrainSetup(context, branch)
    first, stop = parse_slots(slots, setup.stage)
    resources = replace(context.resources(setup.stage), min_workers=1, max_workers=1)
    context.cluster.require(resources, f"stages.{branch.stage_name}")
    selection = newest_valid(open_storage(setup.checkpoints), status.digest)
    job = ReplayJob(setup.job(status, init=None, selection=selection), first, stop)
    context.say(branch.id, f"replaying the slots {slots} on one worker, with the weights of {where(selection)}")
    folder = setup.folder.path.absolute()
    launch(
        replay_worker,
        job,
        resources,
        workers=1,
        name=f"replay-{first}",
        folder=folder,
        stall_timeout_s=context.config.cluster.stall_timeout_s,
    )
    found = json.loads((setup.folder.path / NAME).read_text())
    for line in report(found):
        context.say(branch.id, line)
    context.say(branch.id, f"the full result is in {setup.folder.path / NAME}")


def stopped_branch(context: RunContext) -> tuple[Branch, Status]:
    """The first training branch that has begun but not finished; otherwise the last one that has begun."""
    begun = []
    for branch in stage_branches(context.config):
        status = context.folder.stage(branch.id).status()
        if isinstance(branch.stage, TrainStage) and status:
            if status.state != FINISHED:
                return branch, status
            begun.append((branch, status))
    if not begun:
        raise ConfigError(
            f"train.replay_slots: no training stage has started in {context.folder.path}, so there is nothing to "
            "replay; run the pipeline without it first"
        )
    return begun[-1]


def parse_slots(slots: str, stage: TrainStage) -> tuple[int, int]:
    first, stop = (int(part) for part in slots.split(":"))
    size = stage.global_batch_size
    if stop - first != size or first % size:
        raise ConfigError(
            f"train.replay_slots: found '{slots}', which is not a batch of {size} slots, such as "
            f"{first // size * size}:{first // size * size + size}"
        )
    return first, stop


def where(selection: Selection) -> str:
    return selection.folder or "the start, as there is no committed checkpoint"


def report(found: dict[str, Any]) -> list[str]:
    """The main findings, one per line."""
    samples = found["samples"]
    lines = [f"mean loss {found['loss']:.4g}, gradient norm {found['gradient_norm']:.4g}"]
    if found["losses_not_finite"]:
        lines.append(f"{found['losses_not_finite']} losses are not finite")
    if found["first_module_not_finite"]:
        lines.append(f"the first module with a non-finite output is {found['first_module_not_finite']}")
    if found["gradients_not_finite"]:
        names = found["gradients_not_finite"]
        lines.append(f"gradients of {len(names)} parameters are not finite, the first is {names[0]}")
    if found["anomaly"]:
        lines.append(f"in the backward pass: {found['anomaly'].splitlines()[0]}")
    if len(lines) == 1:
        lines.append("everything is finite here; with other weights, precision or ranks it may not have been")
    for sample in samples[:5]:
        label = f"  label {sample['label']}" if "label" in sample else ""
        lines.append(f"slot {sample['slot']}  {sample['key']}{label}  loss {sample['loss']:.4g}")
    return lines
