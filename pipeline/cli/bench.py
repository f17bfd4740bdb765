"""`minivit bench`: measurements against peers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from pipeline.cli.paths import UserPath

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
PHOTOS_FOLDER = click.option(
    "--folder", default="data/bench", show_default=True, help="Where the photographs are kept."
)


@click.group("bench")
def group() -> None:
    """Measure this pipeline against its peers; every figure of RESULTS.md comes from here."""


@group.command("overhead")
@click.argument("config", type=UserPath(), default="configs/quickstart.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", default="pretrain", show_default=True, help="Training stage to measure.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Pairs of measurements.")
@click.option(
    "--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Steps of each loop per round."
)
@AS_JSON
def overhead(config: str, overrides: tuple[str, ...], stage: str, rounds: int, steps: int, as_json: bool) -> None:
    """Images/s of a stage's own loop (engine, stream, tracking) against a bare loop of the same model."""
    from pipeline.bench.overhead import measure
    from pipeline.config.load import load_config

    result = measure(load_config(config, overrides), stage, rounds=rounds, steps=steps)
    if as_json:
        show(result, as_json)
        return
    for name in ("ours", "bare_loop"):
        click.echo(f"{name:10} {result[name]['images_per_s']:10,.0f} images/s")
    click.echo(f"{'ratio':10} {result['ratio']:10.2f}   ({result['stage']} on {result['workers']} workers)")


@group.command("step")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=["tiny", "small"],
    show_default=True,
    help="Model; may be given several times.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "bf16_compiled"]),
    default=["fp32", "bf16", "bf16_compiled"],
    show_default=True,
    help="Precision and execution; may be given several times.",
)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Images per step.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads of each contender.")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Steps of each contender, in turn."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Device to measure on; default: a GPU if there is one, else the CPU.",
)
@click.option(
    "--peak-tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="Dense bf16 TFLOP/s of the GPU, for `mfu`; default: from its data sheet, if known.",
)
@AS_JSON
def step(
    variants: tuple[str, ...],
    modes: tuple[str, ...],
    batch_size: int,
    threads: int,
    rounds: int,
    device: str | None,
    peak_tflops: float | None,
    as_json: bool,
) -> None:
    """Images/s and memory of a training step at 224 px against stock nn.TransformerEncoder and timm.

    Where bf16 is emulated so slowly that a step of the others takes minutes, they run batches of one image, and their
    memory is extrapolated from batches of one and four.
    """
    from pipeline.bench.step import measure

    result = measure(
        list(variants),
        list(modes),
        batch_size=batch_size,
        threads=threads,
        rounds=rounds,
        device=device,
        peak_tflops=peak_tflops,
    )
    show(result, as_json)


@group.command("multiscale")
@click.option("--variant", default="tiny", show_default=True, help="Model.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Images per step.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads of each run.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Steps at each size.")
@AS_JSON
def multiscale(variant: str, batch_size: int, threads: int, rounds: int, as_json: bool) -> None:
    """What a random size per step, of 160 to 288 px, costs over the token-weighted mean of the five fixed sizes."""
    from pipeline.bench.multiscale import measure

    sizes = [160, 192, 224, 256, 288]
    show(measure(variant, sizes, batch_size=batch_size, threads=threads, rounds=rounds), as_json)


@group.command("masked")
@click.option("--variant", default="tiny", show_default=True, help="Model.")
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(1), help="Pixels.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Images per step.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Passes of each model, in turn.")
@AS_JSON
def masked(
    variant: str, image_size: int, precision: str, batch_size: int, threads: int, rounds: int, as_json: bool
) -> None:
    """What a masked autoencoder's forward and backward cost, compared with an encoder's that sees all patches."""
    from pipeline.bench.masked import measure

    result = measure(
        variant, image_size=image_size, batch_size=batch_size, threads=threads, rounds=rounds, precision=precision
    )
    show(result, as_json)


@group.command("objectives")
@click.option("--task", "tasks", multiple=True, help="Objective; may be given several times; default: all that train.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=["tiny", "nano"],
    show_default=True,
    help="Model; may be given several times. Models with patches of 16 px train at 224 px, those with 4 px at 28 px.",
)
@click.option("--batch-size", type=click.IntRange(2), help="Images per step; default: 16 at 224 px, 128 at 28 px.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option(
    "--micro-batches",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Micro-batches of our step; the bare loop has one.",
)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Steps of each loop, in turn.")
@AS_JSON
def objectives(
    tasks: tuple[str, ...],
    variants: tuple[str, ...],
    batch_size: int | None,
    precision: str,
    micro_batches: int,
    threads: int,
    rounds: int,
    as_json: bool,
) -> None:
    """A step of each objective through the engine against a bare loop of the same mathematics, on one batch."""
    from pipeline.bench.objectives import measure
    from pipeline.bench.tasks import known_tasks

    names = known_tasks(tasks)
    result = measure(
        names,
        list(variants),
        batch_size=batch_size,
        precision=precision,
        threads=threads,
        rounds=rounds,
        micro_batches=micro_batches,
    )
    if as_json:
        show(result, as_json)
        return
    for variant in variants:
        for name, found in result[variant].items():
            ours, bare = (found[loop]["step_s"] * 1000 for loop in ("ours", "bare_loop"))
            ratios = f"ratio {found['ratio']:.3f}, in CPU time {found['cpu_ratio']:.3f}"
            click.echo(f"{variant:8} {name:16} {ours:8,.0f} ms   bare loop {bare:8,.0f} ms   {ratios}")


@group.command("parity")
@click.argument("config", type=UserPath(), default="configs/quickstart.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", default="pretrain", show_default=True, help="Training stage whose recipe both follow.")
@click.option("--test", default="test", show_default=True, help="Data set to test both on.")
@click.option("--variant", default="nano", show_default=True, help="Model.")
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(1), help="Length of each run.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads of the plain loop.")
@AS_JSON
def parity(
    config: str,
    overrides: tuple[str, ...],
    stage: str,
    test: str,
    variant: str,
    epochs: int,
    seeds: int,
    threads: int,
    as_json: bool,
) -> None:
    """Test accuracy of the pipeline against timm's model in a plain PyTorch loop, on the same shards and recipe."""
    from pipeline.bench.parity import measure
    from pipeline.config.load import load_config

    loaded = load_config(config, overrides)
    result = measure(loaded, stage, test=test, variant=variant, epochs=epochs, seeds=seeds, threads=threads)
    if as_json:
        show(result, as_json)
        return
    for name in ("ours", "timm", "difference"):
        found = result[name]
        each = "  ".join(f"{100 * value:6.2f}" for value in found["seeds"])
        click.echo(f"{name:10} {each}   mean {100 * found['mean']:.2f} ± {100 * found['deviation']:.2f} %")


@group.command("plan")
@click.option("--steps", default=7, show_default=True, type=click.IntRange(1), help="Steps of each configuration.")
@AS_JSON
def plan(steps: int, as_json: bool) -> None:
    """Time and memory of a step as `minivit plan --hardware cpu` predicts them, and as the engine takes them here."""
    from pipeline.bench.plan import measure

    result = measure(steps)
    if as_json:
        show(result, as_json)
        return
    for case in result["cases"]:
        times = f"{1000 * case['predicted_s']:8,.0f} {1000 * case['measured_s']:8,.0f} ms {case['ratio']:5.2f}"
        megabytes = f"{case['predicted_megabytes']:7,.0f} {case['measured_megabytes']:7,.0f} MB"
        click.echo(f"{case['case']:42} {case['ranks']} rank(s) {times}   {megabytes} {case['memory_ratio']:5.2f}")


@group.command("surgery")
@click.option("--variant", default="large", show_default=True, help="Model to adapt; large has 304 M parameters.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Repeats.")
@AS_JSON
def surgery(variant: str, rounds: int, as_json: bool) -> None:
    """Seconds to adapt a state to another grid, patch and head, including the check of its outputs."""
    from pipeline.bench.surgery import measure

    show(measure(variant, rounds), as_json)


@group.command("checkpoint")
@click.option("--variant", default="large", show_default=True, help="Model to save; large has 304 M parameters.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Ranks that train and save.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Repeats of each measurement.")
@AS_JSON
def checkpoint(variant: str, workers: int, rounds: int, as_json: bool) -> None:
    """What saving costs the training loop; bandwidth against torch's own; bytes per parameter; resharding."""
    from pipeline.bench.checkpoint import measure

    show(measure(variant, rounds, workers), as_json)


@group.command("recovery")
@click.option(
    "--kills", default=10, show_default=True, type=click.IntRange(1), help="Ranks to kill, one after another."
)
@AS_JSON
def recovery(kills: int, as_json: bool) -> None:
    """Seconds from the kill of a rank to the first step after it, on this machine."""
    from pipeline.bench.recovery import measure

    show(measure(kills), as_json)


@group.command("chaos")
@click.option("--kills", default=30, show_default=True, type=click.IntRange(1), help="Kills in one run.")
@click.option("--seed", default=0, show_default=True, help="Seed for what is killed, and when.")
@click.option(
    "--task",
    help="Kill a run of this objective once, halfway, and resume it on as many ranks and on fewer; default: kill a "
    "classifier's run many times.",
)
@AS_JSON
def chaos(kills: int, seed: int, task: str | None, as_json: bool) -> None:
    """Kill ranks, drivers, raylets and process trees at random; exit status 5 unless the run ends as it should."""
    from pipeline.bench.chaos import measure
    from pipeline.errors import CheckpointError

    if task is not None:
        chaos_of_task(task, as_json)
        return
    result = measure(kills, seed)
    show(result, as_json)
    if not (result["same_weights"] and result["same_metrics"] and result["same_evaluation"]):
        raise CheckpointError("the disturbed run's results differ from the undisturbed run's; see above")


def chaos_of_task(task: str, as_json: bool) -> None:
    from pipeline.bench.chaos_task import measure
    from pipeline.bench.tasks import known_tasks

    (name,) = known_tasks([task])
    show(measure(name), as_json)


@group.command("loader")
@click.option("--shards", help="Pattern of indexed JPEG shards; default: shards of photographs, written for this.")
@click.option(
    "--photos",
    type=click.Choice(["500x375", "2000x1500"]),
    default="500x375",
    show_default=True,
    help="Which photographs to use without --shards.",
)
@click.option("--image-size", type=click.IntRange(1), help="Side of the crops; default: 224, and 96 for 2000x1500.")
@click.option("--workers", type=click.IntRange(1), help="Processes or threads of each loader; default: one per CPU.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Runs of each loader, in turn.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.1), help="Length of a run.")
@PHOTOS_FOLDER
@AS_JSON
def loader(
    shards: str | None,
    photos: str,
    image_size: int | None,
    workers: int | None,
    rounds: int,
    seconds: float,
    folder: str,
    as_json: bool,
) -> None:
    """Images/s of our loader against WebDataset with Pillow, with torchvision's decoder, and DALI on the CPU.

    All read the same shards on the same cores and make batches of 64 random resized crops, half of them flipped; ours
    also of photographs with class maps as large as they, where no shards are given. DALI takes part where nvidia-dali
    is installed.
    """
    from pathlib import Path

    from pipeline.bench.loader import measure
    from pipeline.bench.photos import ensure_photos
    from pipeline.shards.index import load_index
    from pipeline.shards.parallel import usable_cpus

    index = load_index(shards) if shards else ensure_photos(Path(folder), photos)
    image_size = image_size or (96 if photos == "2000x1500" and not shards else 224)
    masks = None if shards else ensure_photos(Path(folder), photos, masks=True)
    result = measure(index, masks, image_size, workers=workers or usable_cpus(), rounds=rounds, seconds=seconds)
    if as_json:
        show(result, as_json)
        return
    settings = result.pop("settings")
    click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()))
    for name, found in result.items():
        faster = found["ours_is_faster_by"]
        click.echo(
            f"{name:24} {found['images_per_s']:9,.0f} images/s {found['images_per_cpu_s']:9,.0f} per CPU-second   "
            f"ours is {faster['images_per_s']:.2f} ({faster['images_per_cpu_s']:.2f} per CPU-second) x as fast"
        )


@group.command("memory")
@PHOTOS_FOLDER
@click.option("--batches", default=60, show_default=True, type=click.IntRange(1), help="Batches per data set.")
@AS_JSON
def memory(folder: str, batches: int, as_json: bool) -> None:
    """Peak memory of a loader worker on the photographs, and on ten times as many shards of them."""
    from pathlib import Path

    from pipeline.bench.memory import measure
    from pipeline.bench.photos import ensure_photos

    show(measure(ensure_photos(Path(folder), "500x375"), 224, batches), as_json)


@group.command("resume")
@PHOTOS_FOLDER
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Starts at each position, in turn."
)
@AS_JSON
def resume(folder: str, rounds: int, as_json: bool) -> None:
    """Seconds to the first batch after resuming at 1 % and at 99 % of an epoch."""
    from pathlib import Path

    from pipeline.bench.photos import ensure_photos
    from pipeline.bench.resume import measure

    show(measure(ensure_photos(Path(folder), "500x375"), 224, rounds), as_json)


@group.command("scale")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Fresh processes to measure.")
@AS_JSON
def scale(rounds: int, as_json: bool) -> None:
    """Seconds and memory that one of 4,096 ranks needs to find its first sample among 200,000 shards of 10,000."""
    from pipeline.bench.scale import measure

    show(measure(rounds), as_json)


@group.command("fuzz")
@click.option("--inputs", default=20_000, show_default=True, type=click.IntRange(1), help="Damaged samples to read.")
@click.option("--seed", default=0, show_default=True, help="Seed of the damage.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one per CPU.")
@AS_JSON
def fuzz(inputs: int, seed: int, workers: int | None, as_json: bool) -> None:
    """Read damaged tars and images; exit status 1 if anything but a sound refusal or an image comes out."""
    from pipeline.bench.fuzz import measure
    from pipeline.errors import PipelineError

    result = measure(inputs, seed, workers)
    show(result, as_json)
    if result["unexpected"]:
        raise PipelineError(
            f"{len(result['unexpected'])} inputs were neither read nor refused cleanly; the first: "
            f"{result['unexpected'][0]}"
        )


@group.command("shuffle")
@click.option("--plot", type=UserPath(dir_okay=False), help="Plot both distributions to this file.")
@AS_JSON
def shuffle(plot: str | None, as_json: bool) -> None:
    """How well batches mix where every shard holds one class, against a uniform shuffle."""
    from pathlib import Path

    from pipeline.bench.shuffle import measure

    result = measure(Path(plot) if plot else None)
    show(result, as_json)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print figures, a line each, or all of them as JSON."""
    import json

    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    for name, value in flat(result):
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(one, dict) for one in values):
            shown = ", ".join(f"{one:,.3g}" if isinstance(one, float) else str(one) for one in values)
            click.echo(f"{name.replace('_', ' '):24} {shown}")


def flat(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures of a nested result, each under all its names."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from ((f"{name} {key}", found) for key, found in flat(value))
        else:
            yield name, value
