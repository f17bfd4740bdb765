"""`minivit export`: writes a finished model for other software."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


class FormatName(click.ParamType[str]):
    """The name of a format; the help lists those of the table, which is imported only then."""

    name = "format"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        from pipeline.export import FORMATS

        return "|".join(FORMATS)


@click.command("export")
@click.argument("model", type=UserPath(path_type=Path), metavar="RUN[/STAGE]")
@click.option(
    "--format",
    "name",
    type=FormatName(),
    default="safetensors",
    show_default=True,
    help="What to write; pipeline/export/README.md says what each holds.",
)
@click.option(
    "--checkpoint",
    metavar="best|last|step-N",
    help="Export a committed checkpoint instead of the finished model; works before the stage has finished.",
)
@click.option(
    "--weights",
    metavar="last|ema|best|step-N|soup-K",
    help="Weights to export instead of the finished model's: the last checkpoint's, its moving average, the best "
    "checkpoint's, those of a step, or the mean of the last K checkpoints.",
)
@click.option(
    "--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="Version of ONNX's operator set."
)
@click.option("--fixed-size", is_flag=True, help="Export a graph that only accepts images of the model's size.")
@click.option(
    "--license", "license_name", metavar="NAME", help="Licence of the weights, for the model card, such as apache-2.0."
)
@click.option(
    "--out",
    type=UserPath(path_type=Path),
    required=True,
    help="New or empty folder, or one with an export in this format.",
)
def command(
    model: Path,
    name: str,
    checkpoint: str | None,
    weights: str | None,
    opset: int,
    fixed_size: bool,
    license_name: str | None,
    out: Path,
) -> None:
    """Export the model of RUN's last training stage, or of RUN/STAGE, to a folder."""
    from pipeline.config.export import GraphConfig, check_weights
    from pipeline.errors import ConfigError
    from pipeline.export import export
    from pipeline.models.bundle import load_bundle
    from pipeline.models.find_bundle import find_bundle
    from pipeline.stages.checkpoint_model import checkpoint_bundle, only_stage, weights_bundle
    from pipeline.stages.story import story_of

    if weights and checkpoint:
        raise ConfigError("--weights: found --checkpoint as well; give only one of them")
    if weights or checkpoint:
        folder, _ = only_stage(model)
        if weights:
            bundle = weights_bundle(folder, check_weights(weights))
        else:
            bundle = checkpoint_bundle(folder, str(checkpoint))
    else:
        folder = find_bundle(model)
        bundle = load_bundle(folder)
    graph = GraphConfig(opset=opset, any_size=not fixed_size)
    story = story_of(folder, license_name, finished=not (weights or checkpoint))
    click.echo(str(export(name, bundle, out, graph, story)))
