"""The entry point: runs a command and prints a user's error as one sentence."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module

import click

from pipeline import __version__

# name -> (module, attribute, one-line help). Modules are imported on use, so that `--help` is fast.
COMMANDS = {
    "run": ("pipeline.cli.run", "command", "Run or resume a pipeline."),
    "plan": ("pipeline.cli.plan", "command", "Show what a pipeline would do, without training."),
    "shards": ("pipeline.cli.shards", "group", "Make, index and verify WebDataset shards."),
    "checkpoints": ("pipeline.cli.checkpoints", "group", "List, verify, inspect and reshard the checkpoints of a run."),
    "export": ("pipeline.cli.export", "command", "Export a finished model to another format."),
    "evaluate": ("pipeline.cli.evaluate", "command", "Evaluate finished models on a data set."),
    "predict": ("pipeline.cli.predict", "command", "Predict images with a finished model."),
    "report": ("pipeline.cli.report", "command", "Write a run's HTML report."),
    "launch": ("pipeline.cli.launch", "group", "Write the manifest to run a pipeline on Kubernetes."),
    "bench": ("pipeline.cli.bench", "group", "Measure this pipeline against its peers."),
}


class LazyGroup(click.Group):
    """A group that imports a command only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minivit")
@click.option("--debug", is_flag=True, help="Show an error's traceback.")
def cli(debug: bool) -> None:
    """Pretrain Vision Transformers on WebDataset shards, fine-tune them stage by stage, and export them.

    Shell completion: eval "$(_MINIVIT_COMPLETE=bash_source minivit)", or zsh_source, fish_source.
    """


def main() -> None:
    """Run the command line; the exit status is 0, or the error's own."""
    from pipeline.errors import CheckpointError, PipelineError

    keep_working_folder_out()
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: file names may contain any bytes
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except PipelineError as error:
        if debug:
            raise
        for sentence in str(error).splitlines():  # one per fault
            click.echo(f"error: {sentence}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno == errno.ENOSPC
        remedy = "; make room and run the same command again" if full else ""
        click.echo(f"error: {where}{error.strerror or error}{remedy}", err=True)
        sys.exit(CheckpointError.exit_code if full else 1)


def keep_working_folder_out() -> None:
    """Never import modules from the user's folder, in child processes either: a `queue.py` would shadow Python's."""
    os.environ["PYTHONSAFEPATH"] = "1"
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # `PYTHONPATH=$PYTHONPATH:lib` may leave an empty entry, which stands for that folder.
    if "" in entries[1:] or "" in entries[:-1]:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))
        sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]


if __name__ == "__main__":
    main()
