"""Reports the bad samples that a stage left out: on the console, in its events and in its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.shards.bad_samples import BadSamples, quarantine_files, summarise
from pipeline.shards.index import DatasetIndex
from pipeline.stages.context import RunContext
from pipeline.stages.folder import StageFolder


def report_bad_samples(
    context: RunContext, stage_id: str, what: str, manifest: Path, indexes: Iterable[DatasetIndex], consequence: str
) -> dict[str, Any]:
    """Report how many samples in `what` are bad, the first reasons and the `consequence`.

    `what` is train, val or the name of an evaluation's data set; `manifest` may stand for several files. Returns
    the entry for the stage's result.
    """
    found = summarise(manifest, sum(index.num_samples for index in indexes))
    if found.bad:
        message = bad_samples_message(what, found, manifest, consequence)
        StageFolder(manifest.parent).event("bad_samples", message, bad=found.bad, samples=found.samples)
        context.say(stage_id, message)
    return found.to_dict()


def bad_samples_message(what: str, found: BadSamples, manifest: Path, consequence: str) -> str:
    pattern = manifest.with_name(f"{manifest.stem}.*.jsonl")
    return (
        f"{what}: {found.bad:,} of {found.samples:,} samples are bad and were left out: {found}; "
        f"{pattern} lists them; {consequence}"
    )


def manifests(folder: Path, *names: str) -> list[tuple[Path, str | None]]:
    """The files of quarantine manifests as artifacts: (file, artifact folder)."""
    return [(file, "quarantine") for name in names for file in quarantine_files(folder / name)]
