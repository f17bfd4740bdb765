"""Which checkpoints stay: the last ones, one per stretch of training, and the best by a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checkpoints.manifest import NAME, Manifest, read_manifest
from pipeline.checkpoints.selection import step_folder, step_folders
from pipeline.checkpoints.storage import Storage
from pipeline.errors import CheckpointError


@dataclass(frozen=True)
class Retention:
    """`last` newest ones; the first of every `every_steps` steps; the best by `best_metric` (a loss is least)."""

    last: int
    every_steps: int | None = None
    best_metric: str | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep, of those that are committed: step -> its metrics."""
        steps = sorted(metrics)
        kept = set(steps[-self.last :])
        if self.every_steps:
            firsts: dict[int, int] = {}
            for step in steps:
                firsts.setdefault(step // self.every_steps, step)
            kept |= {step for stretch, step in firsts.items() if stretch > 0}
        name = self.best_metric
        if name and (measured := [step for step in steps if name in metrics[step]]):
            sign = -1 if name.endswith("loss") else 1
            kept.add(max(measured, key=lambda step: (sign * metrics[step][name], step)))
        return kept


def prune(storage: Storage, retention: Retention) -> None:
    """Remove what is not kept, and what was left uncommitted before the newest committed one.

    What is newer than that may still be being written, and what a reader holds stays until the next time.
    """
    committed: dict[int, Manifest] = {}
    folders = step_folders(storage)
    for folder in folders:
        if f"{folder}/{NAME}" in storage.files(folder):
            try:
                manifest = read_manifest(storage, folder)
            except CheckpointError:
                return  # damaged or of another version: a person should look before anything goes
            committed[manifest.step] = manifest
    if not committed:
        return
    kept = retention.kept({step: manifest.metrics for step, manifest in committed.items()})
    kept_folders = {step_folder(step) for step in kept}
    for folder in folders[: folders.index(step_folder(max(committed)))]:
        if folder not in kept_folders:
            storage.remove_folder(folder)


def sweep(storage: Storage, folder: str, manifest: Manifest) -> None:
    """Remove from a committed checkpoint what earlier attempts, killed in mid-write, have left in its folder."""
    listed = {f"{folder}/{name}" for name in (NAME, *(record.name for record in manifest.files))}
    for path in storage.files(folder).keys() - listed:
        storage.remove(path)
