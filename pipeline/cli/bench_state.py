"""`minivit bench`: adapting and saving a model's state, and recovering it after failures."""

from __future__ import annotations

import click

from pipeline.cli.bench_options import AS_JSON, count_option, print_figures, variant_option


@click.command("surgery")
@variant_option("large", "Model to adapt; large has 304 M parameters.")
@count_option("--rounds", 5, "Repeats.")
@AS_JSON
def surgery(variant: str, rounds: int, as_json: bool) -> None:
    """Time to adapt a model to another grid, patch size and head, including the check of its outputs."""
    from pipeline.bench.surgery import measure

    print_figures(measure(variant, rounds), as_json)


@click.command("checkpoint")
@variant_option("large", "Model to save; large has 304 M parameters.")
@count_option("--workers", 2, "Ranks that train and save.")
@count_option("--rounds", 5, "Repeats of each measurement.")
@AS_JSON
def checkpoint(variant: str, workers: int, rounds: int, as_json: bool) -> None:
    """Delay of training by a save, bandwidth compared with torch's own, bytes per parameter, and resharding."""
    from pipeline.bench.checkpoint import measure

    print_figures(measure(variant, rounds, workers), as_json)


@click.command("recovery")
@count_option("--kills", 10, "Number of ranks to kill, one after another.")
@AS_JSON
def recovery(kills: int, as_json: bool) -> None:
    """Time from killing a rank to the first step after that, on this machine."""
    from pipeline.bench.recovery import measure

    print_figures(measure(kills), as_json)


@click.command("chaos")
@count_option("--kills", 30, "Number of kills in the run.")
@click.option("--seed", default=0, show_default=True, help="Seed for the targets and times of the kills.")
@click.option(
    "--task",
    help="Kill a run of this objective once, halfway, and resume it on as many ranks and on fewer; default: kill a "
    "classifier's run many times.",
)
@AS_JSON
def chaos(kills: int, seed: int, task: str | None, as_json: bool) -> None:
    """Kill ranks, drivers, raylets and process trees at random; exit status 5 if this changes the run's results."""
    from pipeline.bench.chaos import measure
    from pipeline.errors import CheckpointError

    if task is not None:
        chaos_of_task(task, as_json)
        return
    result = measure(kills, seed)
    print_figures(result, as_json)
    if not (result["same_weights"] and result["same_metrics"] and result["same_evaluation"]):
        raise CheckpointError("the disturbed run's results differ from the undisturbed run's; see above")


def chaos_of_task(task: str, as_json: bool) -> None:
    from pipeline.bench.chaos_task import measure
    from pipeline.bench.tasks import known_tasks

    (name,) = known_tasks([task])
    print_figures(measure(name), as_json)
