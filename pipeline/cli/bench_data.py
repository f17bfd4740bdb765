"""`minivit bench`: speed, memory, shuffling and robustness of reading samples, compared with other loaders."""

from __future__ import annotations

import click

from pipeline.cli.bench_options import AS_JSON, PHOTOS_FOLDER, count_option, print_figures
from pipeline.cli.paths import UserPath


@click.command("loader")
@click.option(
    "--shards", help="Indexed JPEG shards; default: shards of photographs, which are created on the first call."
)
@click.option(
    "--photos",
    type=click.Choice(["500x375", "2000x1500"]),
    default="500x375",
    show_default=True,
    help="Size of the photographs to use without --shards.",
)
@click.option("--image-size", type=click.IntRange(1), help="Side of the crops; default: 224, and 96 for 2000x1500.")
@click.option("--workers", type=click.IntRange(1), help="Processes or threads of each loader; default: one per CPU.")
@count_option("--rounds", 5, "Runs per loader, alternating.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.1), help="Duration of each run.")
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
    """Images/s of our loader, WebDataset with Pillow or torchvision's decoder, and DALI on the CPU.

    All read the same shards on the same cores and make batches of 64 random resized crops, half of them flipped.
    Without --shards, our loader also reads photographs with class maps of the same size. DALI takes part if nvidia-dali
    is installed; if it does not run, a line says why.
    """
    from pathlib import Path

    from pipeline.bench.loader import measure
    from pipeline.bench.photos import ensure_photos
    from pipeline.cpus import usable_cpus
    from pipeline.shards.index_file import load_index

    index = load_index(shards) if shards else ensure_photos(Path(folder), photos)
    image_size = image_size or (96 if photos == "2000x1500" and not shards else 224)
    masks = None if shards else ensure_photos(Path(folder), photos, masks=True)
    result = measure(index, masks, image_size, workers=workers or usable_cpus(), rounds=rounds, seconds=seconds)
    if as_json:
        print_figures(result, as_json)
        return
    settings, skipped = result.pop("settings"), result.pop("skipped")
    click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()))
    for name, found in result.items():
        faster = found["ours_is_faster_by"]
        click.echo(
            f"{name:24} {found['images_per_s']:9,.0f} images/s {found['images_per_cpu_s']:9,.0f} per CPU-second   "
            f"ours is {faster['images_per_s']:.2f} ({faster['images_per_cpu_s']:.2f} per CPU-second) x as fast"
        )
    for name, reason in skipped.items():
        click.echo(f"{name:24} skipped: {reason}")


@click.command("memory")
@PHOTOS_FOLDER
@count_option("--batches", 60, "Batches per data set.")
@AS_JSON
def memory(folder: str, batches: int, as_json: bool) -> None:
    """Peak memory of a loader worker on the photographs, and on ten times as many shards."""
    from pathlib import Path

    from pipeline.bench.memory import measure
    from pipeline.bench.photos import ensure_photos

    print_figures(measure(ensure_photos(Path(folder), "500x375"), 224, batches), as_json)


@click.command("resume")
@PHOTOS_FOLDER
@count_option("--rounds", 5, "Starts per position, alternating.")
@AS_JSON
def resume(folder: str, rounds: int, as_json: bool) -> None:
    """Seconds to the first batch after resuming at 1 % and at 99 % of an epoch."""
    from pathlib import Path

    from pipeline.bench.photos import ensure_photos
    from pipeline.bench.resume import measure

    print_figures(measure(ensure_photos(Path(folder), "500x375"), 224, rounds), as_json)


@click.command("scale")
@count_option("--rounds", 5, "Fresh processes to measure.")
@AS_JSON
def scale(rounds: int, as_json: bool) -> None:
    """Time and memory for one of 4,096 ranks to find its first sample in 200,000 shards of 10,000 samples."""
    from pipeline.bench.scale import measure

    print_figures(measure(rounds), as_json)


@click.command("counts")
@click.option("--shards", default=100_000, show_default=True, type=click.IntRange(1), help="Shards to write.")
@click.option("--url", help="Measure shards that are there, such as s3://BUCKET; their index is replaced.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Fresh processes to measure.")
@AS_JSON
def counts(shards: int, url: str | None, rounds: int, as_json: bool) -> None:
    """Seconds and memory to index shards by counts, and to read the first batch of a shuffled epoch after that."""
    from pipeline.bench.counts import measure

    print_figures(measure(shards, url, rounds), as_json)


@click.command("fuzz")
@count_option("--inputs", 20_000, "Damaged samples to read.")
@click.option("--seed", default=0, show_default=True, help="Seed of the damage.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one per CPU.")
@AS_JSON
def fuzz(inputs: int, seed: int, workers: int | None, as_json: bool) -> None:
    """Read damaged tars and images; exit status 1 if one is neither read nor rejected with a proper error."""
    from pipeline.bench.fuzz import measure
    from pipeline.errors import PipelineError

    result = measure(inputs, seed, workers)
    print_figures(result, as_json)
    if result["unexpected"]:
        raise PipelineError(
            f"{len(result['unexpected'])} inputs were neither read nor refused cleanly; the first: "
            f"{result['unexpected'][0]}"
        )


@click.command("shuffle")
@click.option("--plot", type=UserPath(dir_okay=False), help="Plot both distributions to this file.")
@AS_JSON
def shuffle(plot: str | None, as_json: bool) -> None:
    """How well batches mix shards of one class each, compared with a uniform shuffle."""
    from pathlib import Path

    from pipeline.bench.shuffle import measure

    result = measure(Path(plot) if plot else None)
    print_figures(result, as_json)
