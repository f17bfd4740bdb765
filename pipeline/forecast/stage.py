"""The forecast of a training stage for one model, assembled from the other modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.forecast.compute import Work, compute_time
from pipeline.forecast.failures import daly_s, goodput, young_s
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.loading import SampleCost, load_time
from pipeline.forecast.network import Ring, communication
from pipeline.forecast.saving import SaveTime, save_time

DAY_S, HOUR_S = 86_400.0, 3_600.0
MUCH_WAITING = 0.05  # share of a step
RESTART_S = 21.0  # from the loss of a node to the first step of a small model, measured in `tests/integration`


@dataclass(frozen=True)
class Job:
    """A stage on its ranks: everything that does not depend on a step's image size."""

    ranks: int
    global_batch_size: int
    zero_stage: int
    trained: int  # parameters
    parameters: int
    bucket: int  # elements of a reduction
    loader_workers: int  # per rank
    sample: SampleCost
    checkpoint_bytes: int
    steps: int | None
    save_every_s: float | None  # None: only every `save_every_steps`
    save_every_steps: int | None


@dataclass(frozen=True)
class StepTime:
    """Means over the steps; each step waits for the rank with the most samples."""

    compute_s: float
    communication_s: float
    exposed_s: float  # communication not hidden by computation
    load_s: float
    data_wait_s: float
    slowest_of_data: str  # loader or storage

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s + self.data_wait_s


@dataclass(frozen=True)
class Failures:
    """The cost of failures; intervals are training time between two saves."""

    mtbf_s: float  # of all nodes together
    recovery_s: float
    young_s: float
    daly_s: float
    best_interval_s: float  # Daly's, but no shorter than a step and a save
    best_goodput: float
    interval_s: float  # the config's
    goodput: float


@dataclass(frozen=True)
class Forecast:
    """The figures of a stage on given hardware; None if they depend on data that does not exist yet."""

    nodes: int
    step: StepTime
    step_s: float
    images_per_s: float
    loader_cores_per_node: float  # needed to decode as fast as the ranks train
    storage_bytes_per_s_per_node: float  # read at that rate
    decode_s: float  # per image, on a core
    checkpoint_bytes: int
    save_s: float  # in the background
    save_wait_s: float  # for which training waits, unless the next step hides it
    days: float | None
    days_with_failures: float | None
    failures: Failures | None
    memory_bytes: int
    memory_limit_bytes: int
    fits: bool
    remedies: list[str]  # settings that would make it fit in memory
    limited_by: str  # compute, network, loader, storage or memory


def step_time(job: Job, work: Work, hardware: Hardware) -> StepTime:
    """The time of a step at one image size."""
    compute = compute_time(work, hardware)
    network = communication(
        ranks=job.ranks,
        zero_stage=job.zero_stage,
        trained=job.trained,
        parameters=job.parameters,
        width=work.width,
        bucket=job.bucket,
        micro_batches=work.micro_batches,
        forward_s=compute.forward_s,
        backward_s=compute.backward_s,
        hardware=hardware,
    )
    training_s = compute.total_s + network.exposed_s
    on_node = Ring.of(job.ranks, hardware).per_node
    load = load_time(work.samples, job.sample, job.loader_workers, training_s, hardware, ranks=on_node)
    wait_s = max(load.total_s - training_s, 0.0)
    return StepTime(compute.total_s, network.total_s, network.exposed_s, load.total_s, wait_s, load.slowest)


def mean_step(parts: Sequence[tuple[StepTime, float]]) -> StepTime:
    """The mean of steps, weighted by their shares, which add up to 1."""
    names = ("compute_s", "communication_s", "exposed_s", "load_s", "data_wait_s")
    means = {name: sum(share * getattr(step, name) for step, share in parts) for name in names}
    waits_most, _ = max(parts, key=lambda part: part[1] * part[0].data_wait_s)
    return StepTime(**means, slowest_of_data=waits_most.slowest_of_data)


def forecast(
    job: Job,
    works: Sequence[tuple[Work, float]],
    hardware: Hardware,
    *,
    memory_bytes: int,
    remedies: Sequence[str],
    mtbf_h: float | None,
) -> Forecast:
    """Forecast a job from the work of its steps, weighted by their shares, which add up to 1.

    `mtbf_h` is a node's mean time between failures in hours; None ignores failures.
    """
    step = mean_step([(step_time(job, work, hardware), share) for work, share in works])
    ring = Ring.of(job.ranks, hardware)
    nodes = ring.nodes
    unstarved = ring.per_node / job.ranks * job.global_batch_size / (step.compute_s + step.exposed_s)
    save = save_time(job.checkpoint_bytes, job.ranks, nodes, hardware)
    fits = memory_bytes <= hardware.memory_bytes
    failures = _failures(job, step.total_s, save, nodes, mtbf_h)
    days = None if job.steps is None else job.steps * step.total_s / DAY_S
    return Forecast(
        nodes=nodes,
        step=step,
        step_s=step.total_s,
        images_per_s=job.global_batch_size / step.total_s,
        loader_cores_per_node=unstarved * job.sample.decode_s,
        storage_bytes_per_s_per_node=unstarved * job.sample.bytes,
        decode_s=job.sample.decode_s,
        checkpoint_bytes=job.checkpoint_bytes,
        save_s=save.write_s,
        save_wait_s=save.wait_s,
        days=days,
        days_with_failures=days / failures.goodput if days is not None and failures and failures.goodput else None,
        failures=failures,
        memory_bytes=memory_bytes,
        memory_limit_bytes=hardware.memory_bytes,
        fits=fits,
        remedies=list(remedies),
        limited_by=_limit(step, fits, hardware),
    )


def expected_failures(
    *, mtbf_s: float, save_s: float, save_wait_s: float, recovery_s: float, step_s: float, interval_s: float
) -> Failures:
    """The cost of a failure every `mtbf_s`, at the best interval and at the config's.

    `recovery_s` includes the duration of one save, because a failure loses the steps trained while a save is being
    written. A save starts between two steps, after the previous one is written.
    """
    soonest_s = max(step_s, save_s)
    best_s = max(daly_s(save_wait_s, mtbf_s), soonest_s)
    return Failures(
        mtbf_s=mtbf_s,
        recovery_s=recovery_s,
        young_s=young_s(save_wait_s, mtbf_s),
        daly_s=daly_s(save_wait_s, mtbf_s),
        best_interval_s=best_s,
        best_goodput=goodput(best_s, save_wait_s, recovery_s, mtbf_s),
        interval_s=max(interval_s, soonest_s),
        goodput=goodput(max(interval_s, soonest_s), save_wait_s, recovery_s, mtbf_s),
    )


def _failures(job: Job, step_s: float, save: SaveTime, nodes: int, mtbf_h: float | None) -> Failures | None:
    """What failures cost the job; None if they are left out or the interval between two saves is unknown."""
    interval_s = _interval_s(job, step_s)
    if mtbf_h is None or interval_s is None:
        return None
    return expected_failures(
        mtbf_s=HOUR_S * mtbf_h / nodes,
        save_s=save.write_s,
        save_wait_s=save.wait_s,
        recovery_s=RESTART_S + save.read_s + save.write_s,
        step_s=step_s,
        interval_s=interval_s,
    )


def _interval_s(job: Job, step_s: float) -> float | None:
    """Training time between two saves, as configured; None if it depends on data that does not exist yet."""
    by_steps = None if job.save_every_steps is None else job.save_every_steps * step_s
    known = [each for each in (by_steps, job.save_every_s) if each is not None]
    return min(known, default=None)


def _limit(step: StepTime, fits: bool, hardware: Hardware) -> str:
    """The first thing to change for more images per second; memory if the stage does not fit.

    The loader or the storage is the limit if ranks wait for it noticeably; on shared cores, if they wait longer than
    they compute.
    """
    if not fits:
        return "memory"
    waits = step.compute_s if hardware.shares_cores else MUCH_WAITING * step.total_s
    if step.data_wait_s > waits:
        return step.slowest_of_data
    return "network" if step.exposed_s > step.compute_s else "compute"
