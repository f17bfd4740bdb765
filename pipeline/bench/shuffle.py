"""Measures how well the sample order shuffles the worst case: shards sorted by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stream.order import Order

CLASSES, SAMPLES_PER_SHARD, BATCH_SIZE, LANES, WINDOW = 100, 1_000, 256, 64, 512


def measure(plot: Path | None = None) -> dict[str, Any]:
    """Entropy of labels per batch, and distance between former neighbours of the source, over one epoch.

    100 shards of 1,000 samples, each shard of one class; compared with a uniform shuffle of all samples.
    """
    order = Order(np.full(CLASSES, SAMPLES_PER_SHARD), lanes=LANES, window=WINDOW, seed=0)
    slots = np.arange(order.epoch_slots)
    shard, sample = order.samples(slots)
    streams = {
        "ours": shard * SAMPLES_PER_SHARD + sample,
        "uniform": np.random.default_rng(0).permutation(CLASSES * SAMPLES_PER_SHARD)[slots],
    }
    result: dict[str, Any] = {}
    curves = {}
    for name, source in streams.items():
        entropy, apart = batch_entropies(source // SAMPLES_PER_SHARD), neighbour_distances(source)
        curves[name] = entropy, apart
        result[name] = {
            "mean_batch_entropy": float(entropy.mean()),
            "median_neighbour_distance": float(np.median(apart)),
            "neighbours_in_one_batch": float((apart < BATCH_SIZE).mean()),
        }
    result["entropy_ratio"] = result["ours"]["mean_batch_entropy"] / result["uniform"]["mean_batch_entropy"]
    if plot is not None:
        draw_curves(curves, plot)
    return result


def batch_entropies(labels: np.ndarray) -> np.ndarray:
    """Entropy in nats of each batch of a stream's labels."""
    batches = labels[: len(labels) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
    shares = np.stack([np.bincount(batch, minlength=CLASSES) for batch in batches]) / BATCH_SIZE
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1)


def neighbour_distances(source: np.ndarray) -> np.ndarray:
    """Slots between every two samples that are neighbours in the source, if both are in the stream."""
    slot_of = np.full(CLASSES * SAMPLES_PER_SHARD, -1)
    slot_of[source] = np.arange(len(source))
    both = (slot_of[:-1] >= 0) & (slot_of[1:] >= 0)
    return np.abs(np.diff(slot_of))[both]


def draw_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (entropy, apart) in curves.items():
        left.plot(entropy, lw=0.9, label=name)
        right.hist(apart, bins=np.geomspace(1, CLASSES * SAMPLES_PER_SHARD, 60), histtype="step", label=name)
    left.axhline(np.log(CLASSES), color="grey", lw=0.8, ls=":")
    left.set(xlabel=f"batch of {BATCH_SIZE}", ylabel="entropy of its labels, nats", ylim=(0, np.log(CLASSES) * 1.05))
    right.set(xscale="log", xlabel="slots between neighbours of the source", ylabel="pairs")
    left.set_title(f"{CLASSES} classes, a shard each; {LANES} lanes, windows of {WINDOW}", fontsize=9)
    for axes in (left, right):
        axes.legend(frameon=False, loc="lower left" if axes is left else "upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
