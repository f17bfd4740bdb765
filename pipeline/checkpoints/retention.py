"""Which checkpoints to keep: the last ones, one per interval of training, and the best by a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checkpoints.manifest import NAME, Manifest
from pipeline.checkpoints.selection import committed, course, step_folder, step_folders
from pipeline.checkpoints.storage import Storage
from pipeline.metrics.schema import Better, best


def best_step(metrics: Mapping[int, Mapping[str, float]], metric: str, better: Better) -> int | None:
    """The best step by a metric, the earliest on ties; None if none was measured.

    `metrics` maps each step to the measures of exactly its weights. Values that are not finite never win.
    """
    return best({step: metrics[step].get(metric) for step in sorted(metrics)}, better)


@dataclass(frozen=True)
class Retention:
    """Keeps the `last` newest, the first of every `every_steps` steps, and the best by a metric."""

    last: int
    every_steps: int | None = None
    best_by: tuple[str, Better] | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep among the committed ones, given as step -> its metrics."""
        steps = sorted(metrics)
        kept = set(steps[-self.last :])
        if self.every_steps:
            firsts: dict[int, int] = {}
            for step in steps:
                firsts.setdefault(step // self.every_steps, step)
            kept |= {step for stretch, step in firsts.items() if stretch > 0}
        best = best_step(metrics, *self.best_by) if self.best_by else None
        return kept if best is None else kept | {best}


def prune(storage: Storage, retention: Retention, newest: Manifest) -> None:
    """Remove checkpoints that are not kept, up to the one just committed, and uncommitted folders before it.

    Leaves checkpoints of other settings or later steps alone: they are results of other settings, or the run skipped
    them when it resumed. A checkpoint locked by a reader stays until the next call.
    """
    found = committed(storage)
    if None in found.values():
        return  # damaged or from another version: a person should look before anything is removed
    mine = course(found.values(), newest.digest, newest.step)
    kept = retention.kept({step: manifest.metrics for step, manifest in mine.items()})
    going = {step_folder(step) for step in mine.keys() - kept}
    folders = step_folders(storage)
    for folder in folders[: folders.index(step_folder(newest.step))]:
        if folder in going or folder not in found:
            storage.remove_folder(folder)


def sweep(storage: Storage, folder: str, manifest: Manifest) -> None:
    """Remove what earlier attempts, killed while writing, left in the folder of a committed checkpoint."""
    listed = {f"{folder}/{name}" for name in (NAME, *(record.name for record in manifest.files))}
    for path in storage.files(folder).keys() - listed:
        storage.remove(path)
