"""`minivit bench`: speed, memory and accuracy of training, compared with plain loops and other libraries."""

from __future__ import annotations

import click

from pipeline.cli.bench_options import AS_JSON, PRECISION, count_option, print_figures, variant_option, variants_option
from pipeline.cli.paths import UserPath


@click.command("overhead")
@click.argument("config", type=UserPath(), default="configs/quickstart.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", default="pretrain", show_default=True, help="Training stage to measure.")
@count_option("--rounds", 5, "Pairs of measurements.")
@count_option("--steps", 40, "Steps of each loop per round.")
@AS_JSON
def overhead(config: str, overrides: tuple[str, ...], stage: str, rounds: int, steps: int, as_json: bool) -> None:
    """Images/s of a stage's training loop (engine, stream, tracking), compared with a bare loop of the same model."""
    from pipeline.bench.overhead import measure
    from pipeline.config.load import load_config

    result = measure(load_config(config, overrides), stage, rounds=rounds, steps=steps)
    if as_json:
        print_figures(result, as_json)
        return
    for name in ("ours", "bare_loop"):
        click.echo(f"{name:10} {result[name]['images_per_s']:10,.0f} images/s")
    click.echo(f"{'ratio':10} {result['ratio']:10.2f}   ({result['stage']} on {result['workers']} workers)")


@click.command("step")
@variants_option("tiny", "small")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "bf16_compiled"]),
    default=["fp32", "bf16", "bf16_compiled"],
    show_default=True,
    help="Precision and execution; may be given several times.",
)
@count_option("--batch-size", 16, "Images per step.")
@count_option("--threads", 2, "CPU threads of each contender.")
@count_option("--rounds", 5, "Steps per contender, alternating.")
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
    """Images/s and memory of a training step at 224 px, compared with nn.TransformerEncoder and timm.

    On CPUs that emulate bf16 so slowly that a step of the others takes minutes, these run batches of one image, and
    their memory is extrapolated from batches of one and four.
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
    print_figures(result, as_json)


@click.command("multiscale")
@variant_option("tiny")
@count_option("--batch-size", 16, "Images per step.")
@count_option("--threads", 2, "CPU threads of each run.")
@count_option("--rounds", 5, "Steps at each size.")
@AS_JSON
def multiscale(variant: str, batch_size: int, threads: int, rounds: int, as_json: bool) -> None:
    """Cost of a random size per step, 160 to 288 px, relative to the token-weighted mean of the five fixed sizes."""
    from pipeline.bench.multiscale import measure

    sizes = [160, 192, 224, 256, 288]
    print_figures(measure(variant, sizes, batch_size=batch_size, threads=threads, rounds=rounds), as_json)


@click.command("masked")
@variant_option("tiny")
@count_option("--image-size", 224, "Pixels.")
@PRECISION
@count_option("--batch-size", 16, "Images per step.")
@count_option("--threads", 2, "CPU threads.")
@count_option("--rounds", 7, "Passes per model, alternating.")
@AS_JSON
def masked(
    variant: str, image_size: int, precision: str, batch_size: int, threads: int, rounds: int, as_json: bool
) -> None:
    """Cost of a masked autoencoder's forward and backward pass, compared with an encoder that sees all patches."""
    from pipeline.bench.masked import measure

    result = measure(
        variant, image_size=image_size, batch_size=batch_size, threads=threads, rounds=rounds, precision=precision
    )
    print_figures(result, as_json)


@click.command("objectives")
@click.option(
    "--task", "tasks", multiple=True, help="Objective; may be given several times; default: all that can be trained."
)
@variants_option("tiny", "nano", more=" Models with patches of 16 px train at 224 px, those with 4 px at 28 px.")
@click.option("--batch-size", type=click.IntRange(2), help="Images per step; default: 16 at 224 px, 128 at 28 px.")
@PRECISION
@count_option("--micro-batches", 1, "Micro-batches of our step; the bare loop has one.")
@count_option("--threads", 2, "CPU threads.")
@count_option("--rounds", 7, "Steps per loop, alternating.")
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
    """Time of a step of each objective in the engine, compared with a bare loop of the same mathematics."""
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
        print_figures(result, as_json)
        return
    for variant in variants:
        for name, found in result[variant].items():
            ours, bare = (found[loop]["step_s"] * 1000 for loop in ("ours", "bare_loop"))
            ratios = f"ratio {found['ratio']:.3f}, in CPU time {found['cpu_ratio']:.3f}"
            click.echo(f"{variant:8} {name:16} {ours:8,.0f} ms   bare loop {bare:8,.0f} ms   {ratios}")


@click.command("parity")
@click.argument("config", type=UserPath(), default="configs/quickstart.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", default="pretrain", show_default=True, help="Training stage whose recipe both use.")
@click.option("--test", default="test", show_default=True, help="Data set on which both are tested.")
@variant_option("nano")
@count_option("--epochs", 6, "Epochs per run.")
@count_option("--seeds", 3, "Runs of each, with different seeds.")
@count_option("--threads", 2, "CPU threads of the plain loop.")
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
    """Test accuracy of the pipeline and of timm's model in a plain PyTorch loop, with the same shards and recipe."""
    from pipeline.bench.parity import measure
    from pipeline.config.load import load_config

    loaded = load_config(config, overrides)
    result = measure(loaded, stage, test=test, variant=variant, epochs=epochs, seeds=seeds, threads=threads)
    if as_json:
        print_figures(result, as_json)
        return
    for name in ("ours", "timm", "difference"):
        found = result[name]
        each = "  ".join(f"{100 * value:6.2f}" for value in found["seeds"])
        click.echo(f"{name:10} {each}   mean {100 * found['mean']:.2f} ± {100 * found['deviation']:.2f} %")


@click.command("plan")
@count_option("--rounds", 3, "Runs of each configuration, alternating.")
@count_option("--steps", 7, "Steps of each run.")
@AS_JSON
def plan(rounds: int, steps: int, as_json: bool) -> None:
    """Time and memory of a step, as `minivit plan --hardware cpu` predicts them and as measured on this machine."""
    from pipeline.bench.plan import measure

    result = measure(rounds, steps)
    if as_json:
        print_figures(result, as_json)
        return
    for case in result["cases"]:
        times = f"{1000 * case['predicted_s']:8,.0f} {1000 * case['measured_s']:8,.0f} ms {case['ratio']:5.2f}"
        megabytes = f"{case['predicted_megabytes']:7,.0f} {case['measured_megabytes']:7,.0f} MB"
        click.echo(f"{case['case']:42} {case['ranks']} rank(s) {times}   {megabytes} {case['memory_ratio']:5.2f}")


@click.command("weak-scaling")
@count_option("--hosts", 3, "Largest number of hosts, each a network namespace of this machine.")
@click.option(
    "--megabytes-per-s",
    default=25.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="What a host can send.",
)
@count_option("--images", 8, "Images per host and step.")
@count_option("--rounds", 3, "Runs on each number of hosts, alternating.")
@count_option("--steps", 5, "Steps of each run.")
@AS_JSON
def weak_scaling(hosts: int, megabytes_per_s: float, images: int, rounds: int, steps: int, as_json: bool) -> None:
    """Time of a step on one host and more, as `minivit plan` forecasts it and as measured over slow links (root)."""
    from pipeline.bench.weak_scaling import measure

    result = measure(hosts, megabytes_per_s, images, rounds, steps)
    if as_json:
        print_figures(result, as_json)
        return
    for found in result["hosts"]:
        times = f"{1000 * found['predicted_s']:8,.0f} {1000 * found['measured_s']:8,.0f} ms {found['ratio']:5.2f}"
        efficiencies = f"{100 * found['predicted_efficiency']:6.0f} {100 * found['efficiency']:6.0f} % of linear"
        click.echo(f"{found['hosts']} host(s) {times}   {efficiencies}")
