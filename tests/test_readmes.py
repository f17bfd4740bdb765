"""Every command, example and link in the READMEs works: it is run on tiny data, or at least checked against the code.

`CHECKED_ONLY` and `ELSEWHERE` say which commands are not run here, and why.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import click
import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import cli
from pipeline.config.load import load_config
from pipeline.shards.build import build_index

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for top in ("docker", "launch", "pipeline") for path in (ROOT / top).rglob("*.md"))]
)
READMES = [path for path in PAGES if path.name in ("README.md", "CONTRIBUTING.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

# Commands of ours that a unit test cannot run, as patterns, with the reason; their arguments are checked.
CHECKED_ONLY = {
    "launch/test.sh*": "would run the tests within a test",
    "launch/pretrain.sh *": "trains; the integration tests run the quickstart",
    "sbatch * launch/pretrain.sh *": "needs SLURM, which tests/launch/test_slurm.py stands in for",
    "minivit run *": "trains",
    "minivit evaluate *": "starts Ray",
    "minivit shards order *": "makes Fashion-MNIST; tests/cli/test_shards.py runs it on other data",
    "minivit shards verify configs/*": "reads Fashion-MNIST",
    "minivit shards index s3://*": "needs an object store; tests/shards/test_counted.py indexes by counts",
    "minivit checkpoints *": "needs a trained run; tests/cli/test_checkpoints.py has one",
}
# First words of commands that are not ours, with the reason why they are not run.
ELSEWHERE = {
    ".venv/bin/pip": "installs",
    ".venv/bin/pre-commit": "installs",
    "docker": "needs Docker",
    "podman": "needs Podman",
    "docker/build.sh": "builds for minutes; tests/docker/test_build.py has a stand-in",
    "sudo": "prepares a folder or a base for Docker",
    "mkdir": "prepares a folder for Docker",
    "kubectl": "needs Kubernetes",
    "ray": "starts a cluster",
    "mlflow": "starts a team's server with PostgreSQL and S3",
    "set": "the shell's own",
    ".": "the shell's own",
    "eval": "the shell's own; tests/cli/test_main.py tests completion",
}


class Block(NamedTuple):
    page: str
    language: str
    text: str


class Command(NamedTuple):
    page: str
    words: list[str]

    @property
    def line(self) -> str:
        return " ".join(self.words)


def blocks(*languages: str) -> list[Block]:
    found = [(path, *match.groups()) for path in READMES for match in FENCE.finditer(path.read_text())]
    return [Block(str(path.relative_to(ROOT)), kind, text) for path, kind, text in found if kind in languages]


def split(text: str) -> Iterator[list[str]]:
    """The commands of shell text: without comments, assignments before them, and redirections between them."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word.strip("|;&"):
                if command or not re.fullmatch(r"[A-Z_]+=.*", word):
                    command.append(word)
            elif command:
                yield command
                command = []


def commands(block: Block) -> list[Command]:
    return [Command(block.page, words) for words in split(block.text)]


def runnable(block: Block) -> list[Command]:
    ours = [command for command in commands(block) if command.words[0] not in ELSEWHERE]
    return [command for command in ours if not any(fnmatchcase(command.line, pattern) for pattern in CHECKED_ONLY)]


COMMANDS = [command for block in blocks("bash") for command in commands(block)]
OURS = [command for command in COMMANDS if command.words[0] not in ELSEWHERE]
RUN = [block for block in blocks("bash") if runnable(block)]


def context(words: list[str]) -> click.Context:
    """A command line as parsed, without running it. Raises click.ClickException."""
    ctx = cli.make_context("minivit", list(words))
    while isinstance(ctx.command, click.Group):
        name, command, rest = ctx.command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert command is not None
        ctx = command.make_context(name, rest, parent=ctx)
    return ctx


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with everything that the commands name: images, labels, a finished run."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "launch").symlink_to(ROOT / "launch")
    write_images(folder)
    write_labels(folder)
    sample = runpy.run_path(str(ROOT / "tests" / "report" / "sample_run.py"))
    run = sample["build_run"](folder)
    shutil.copytree(run / "stages" / "finetune-56", run / "stages" / "larger")
    (run / "stages" / "larger" / "status.json").unlink()  # it was never scheduled
    shutil.copytree(run, run.with_name("scenes"))
    for name in ("theirs", "scenes"):
        (folder / "data" / name).mkdir(parents=True)
    for tar in (folder / "shards").glob("*.tar"):
        shutil.copy(tar, folder / "data" / "theirs" / f"train-{tar.name}")
        shutil.copy(tar, folder / "data" / "scenes" / f"test-{tar.name}")
    build_index(str(folder / "data" / "scenes"))
    return folder


def write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    places = [f"photos/{name}/{n}.jpg" for name in ("cat", "dog") for n in range(3)]
    places += [f"{name}/{n}.jpg" for name in ("train2017", "JPEGImages", "images", "rgb") for n in range(3)]
    for place in [*places, "shirt.png"]:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / place), random.integers(256, size=(24, 32, 3), dtype=np.uint8))


def write_labels(folder: Path) -> None:
    """The labels of `images` and the like: COCO's, YOLO's, class maps, depth maps and captions."""
    for name in ("labels", "SegmentationClass", "depth"):
        (folder / name).mkdir()
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 32, "height": 24} for n in range(3)]
    boxes = [{"image_id": n, "category_id": 1, "bbox": [2, 3, 8, 9], "area": 72, "iscrowd": 0} for n in range(3)]
    captions = [{"image_id": n, "caption": f"picture {n}"} for n in range(3)]
    categories = [{"id": 1, "name": "cat"}]
    (folder / "instances_train2017.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": boxes})
    )
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": captions}))
    for n in range(3):
        (folder / "labels" / f"{n}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        cv2.imwrite(str(folder / "SegmentationClass" / f"{n}.png"), np.full((24, 32), n % 2, np.uint8))
        cv2.imwrite(str(folder / "depth" / f"{n}.png"), np.full((24, 32), 1000, np.uint16))
    (folder / "data.yaml").write_text("train: images\nnames: [cat]\n")
    (folder / "voc.txt").write_text("background\ncat\n")
    (folder / "train.txt").write_text("0\n1\n2\n")
    (folder / "captions.csv").write_text("image,caption\n" + "".join(f"cat/{n}.jpg,cat {n}\n" for n in range(3)))


def test_readmes_have_commands_of_ours_and_no_unexplained_ones() -> None:
    known = ("minivit", "launch/pretrain.sh", "launch/test.sh", "sbatch")
    assert [command for command in OURS if command.words[0] not in known] == []
    assert {command.words[0] for command in COMMANDS} >= {*ELSEWHERE, *known}, "an explanation has no command"
    assert all(any(fnmatchcase(c.line, known) for c in OURS) for known in CHECKED_ONLY), "likewise"


@pytest.mark.parametrize("command", OURS, ids=lambda command: f"{command.page}: {command.line}")
def test_command_is_understood(command: Command, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options exist, arguments have valid types, configs load with their overrides."""
    monkeypatch.chdir(workshop)
    if command.words[0] == "minivit":
        values = context(command.words[1:]).params
        config, overrides = values.get("config"), values.get("overrides", ())
    else:
        script = next(number for number, word in enumerate(command.words) if word.endswith(".sh"))
        assert (ROOT / command.words[script]).is_file()
        config, *overrides = [*command.words[script + 1 :], None]
        overrides = overrides[:-1]
    if config is not None and "://" not in str(config):
        assert load_config(config, list(overrides)).stages


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}: {block.text.splitlines()[0]}")
def test_commands_run(block: Block, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in a working folder of their own."""
    shutil.copytree(workshop, tmp_path / "own", symlinks=True)
    monkeypatch.chdir(tmp_path / "own")
    for command in runnable(block):
        done = CliRunner().invoke(cli, command.words[1:], catch_exceptions=False)
        assert done.exit_code == 0, (command.line, done.output)


INLINE = sorted(
    {code for path in READMES for code in re.findall(r"`(minivit [^`]+)`", FENCE.sub("", path.read_text()))}
)


@pytest.mark.parametrize("code", INLINE)
def test_inline_command_exists(code: str) -> None:
    """Names and options of a command in a sentence, which may leave out arguments."""
    ctx, command = click.Context(cli), cli
    for word in re.sub(r"[\[\]]", "", code).split()[1:]:
        if word.startswith("--"):
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert word.split("=")[0] in {*options, "--help"}
        elif isinstance(command, click.Group):
            found = command.get_command(ctx, word)
            assert found is not None, word
            command = found


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{block.page}: {block.text.splitlines()[0]}")
def test_yaml_parses(block: Block) -> None:
    assert yaml.safe_load(re.sub(r"^\s*\.\.\.$", "", block.text, flags=re.M)) is not None


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.page}: {block.text.splitlines()[0]}")
def test_python_runs(block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model. A stream is empty here, as its data would have to be made."""
    import torch

    import pipeline
    from pipeline.models import MiniViT, build_spec

    def stream(*args: Any, **options: Any) -> list[Any]:
        found = signature.bind(*args, **options).arguments
        assert found["stage"].split("/")[0] in load_config(found["config"]).stages
        return []

    signature = inspect.signature(pipeline.stage_stream)
    monkeypatch.setattr(pipeline, "stage_stream", stream)
    monkeypatch.chdir(workshop)
    channels, size = (1, 28) if "load_model(" in block.text else (3, 32)
    spec = build_spec("nano", image_size=32, depth=12, num_classes=3)
    names = {"model": MiniViT.from_spec(spec).eval(), "images": torch.zeros(1, channels, size, size)}
    exec(compile(block.text, block.page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path), f"{page}: {target}"


def anchors(page: Path) -> set[str]:
    """The names by which GitHub knows a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_front_page_is_short_and_names_every_task() -> None:
    import pipeline.tasks

    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 18_000, "move details to the README next to the code"
    kinds = {path.parent.name for path in Path(pipeline.tasks.__file__).parent.glob("*/__init__.py")}
    for page in (text, (ROOT / "pipeline" / "tasks" / "README.md").read_text()):
        assert {kind for kind in kinds if f"`{kind}`" not in page} == set()


def test_every_name_that_a_config_can_give_is_in_the_readme_beside_the_code() -> None:
    from pipeline.export import FORMATS
    from pipeline.models.variants import VARIANTS
    from pipeline.shards.make import names
    from pipeline.targets import target_kinds

    for page, known in (("models", VARIANTS), ("shards", [*target_kinds(), *names()]), ("export", FORMATS)):
        text = (ROOT / "pipeline" / page / "README.md").read_text()
        assert [name for name in known if not re.search(rf"[`\s]{name}[`\s]", text)] == [], page


def test_modules_named_in_readmes_exist() -> None:
    for path in READMES:
        for name in re.findall(r"python -m (pipeline[\w.]+)", path.read_text()):
            importlib.import_module(name)
