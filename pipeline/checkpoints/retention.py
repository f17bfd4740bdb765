"""Which checkpoints stay: the last ones, one per stretch of training, and the best by a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checkpoints.manifest import NAME, Manifest
from pipeline.checkpoints.selection import committed, course, step_folder, step_folders
from pipeline.checkpoints.storage import Storage
from pipeline.metrics.schema import Better, best


def best_step(metrics: Mapping[int, Mapping[str, float]], metric: str, better: Better) -> int | None:
    """The step that is best by a metric, the earliest of equals; None if none was measured.

    `metrics` are step -> what was measured of the weights of exactly that step. Values that are not finite never win.
    """
    return best({step: metrics[step].get(metric) for step in sorted(metrics)}, better)


@dataclass(frozen=True)
class Retention:
    """`last` newest ones; the first of every `every_steps` steps; the best by a metric."""

    last: int
    every_steps: int | None = None
    best_by: tuple[str, Better] | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep, of those that are committed: step -> its metrics."""
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
    """Remove what is not kept of the checkpoints up to the one just committed, and what was left uncommitted before it.

    Checkpoints of other settings or of later steps are left alone: they are a former stage's results, or ones that the
    run passed over when it resumed. Those that a reader holds stay until the next call.
    """
    found = committed(storage)
    if None in found.values():
        return  # damaged or of another version: a person should look before anything goes
    mine = course(found.values(), newest.digest, newest.step)
    kept = retention.kept({step: manifest.metrics for step, manifest in mine.items()})
    going = {step_folder(step) for step in mine.keys() - kept}
    folders = step_folders(storage)
    for folder in folders[: folders.index(step_folder(newest.step))]:
        if folder in going or folder not in found:
            storage.remove_folder(folder)


def sweep(storage: Storage, folder: str, manifest: Manifest) -> None:
    """Remove from a committed checkpoint what earlier attempts, killed in mid-write, have left in its folder."""
    listed = {f"{folder}/{name}" for name in (NAME, *(record.name for record in manifest.files))}
    for path in storage.files(folder).keys() - listed:
        storage.remove(path)
