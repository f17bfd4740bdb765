from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline import export as registry
from pipeline.errors import ConfigError, ModelError
from pipeline.export import COMMON, FORMATS, check_format, check_model, check_out, export
from pipeline.models import Bundle, HeadSpec, ModelSpec
from pipeline.models.integrity import check_files


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_writer(name: str) -> None:
    module = importlib.import_module(f"{registry.__name__}.{FORMATS[name].module}")
    assert callable(module.write)


def test_every_writer_is_registered() -> None:
    files = {path.stem for path in Path(registry.__file__).parent.glob("to_*.py")}
    assert files == {row.module for row in FORMATS.values()}


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("open-clip", "hf-clip", "hf")])
def test_an_export_replaces_an_earlier_one_and_nothing_else(
    name: str, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    out, bundle = tmp_path / "out", make_bundle(embed_norm=True, eps=1e-5)
    export(name, bundle, out)
    assert {path.name for path in out.iterdir()} == {*FORMATS[name].files, *COMMON}
    check_files(out)
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    (out / f".0123abcd-{FORMATS[name].files[1]}").touch()  # left by a killed export
    check_out(name, out)
    if not FORMATS[name].graph:  # graphs take seconds
        export(name, bundle, out)
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ModelError, match=rf"out: found 'thesis\.tex', which is not part of a {name} export; give a new"
    ):
        export(name, bundle, out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_folder_may_be_the_one_one_stands_in(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export("safetensors", make_bundle(), ".")
    assert {path.name for path in tmp_path.resolve().iterdir()} == {"model.json", "model.safetensors", *COMMON}
    with pytest.raises(ModelError, match=r"model\.json: found a file, expected a folder"):
        export("safetensors", make_bundle(), tmp_path / "model.json")


def test_wrong_name_lists_the_right_ones(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"did you mean 'onnx'\? Allowed: {', '.join(FORMATS)}",
    ):
        export("onxn", make_bundle(), tmp_path)


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(packages=("onnx", "not_installed_anywhere")))
    with pytest.raises(
        ModelError, match=r"onnx needs the package not_installed_anywhere; run `pip install 'minivit-pipeline\[onnx\]'"
    ):
        check_format("onnx")


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name, row in FORMATS.items():
        listed = {re.split("[>=<]", requirement)[0] for requirement in extras.get(name, [])}
        assert set(row.packages) <= listed


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_is_refused_ahead_exactly_where_it_cannot_be_written(
    name: str, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """`nano` is pre-norm with timm's eps, like timm and ViT, unlike CLIP; none of them supports post-norm."""
    for number, (options, holders) in enumerate(
        [({}, {"timm", "hf"}), ({"norm": "post"}, set()), ({"embed_norm": True, "eps": 1e-5}, {"timm", "clip"})]
    ):
        bundle = make_bundle(**options)
        if not FORMATS[name].check or name in holders:
            check_model(name, bundle.spec)
        else:
            with pytest.raises(ModelError, match=r"^(model\.|heads: )"):
                check_model(name, bundle.spec)
            with pytest.raises(ModelError, match=r"^(model\.|heads: )"):
                export(name, bundle, tmp_path / str(number))


@pytest.mark.parametrize(("name", "form"), [("timm", "timm's ViT"), ("clip", "CLIP's vision tower")])
def test_heads_that_a_format_cannot_hold_are_named(name: str, form: str, make_bundle: Callable[..., Bundle]) -> None:
    spec = ModelSpec(make_bundle().spec.backbone, {"seg_head": HeadSpec("linear", 3)}, "segmentation")
    with pytest.raises(ModelError) as caught:
        check_model(name, spec)
    every_model = [other for other, row in FORMATS.items() if not row.check]
    assert str(caught.value) == (
        f"heads: {form} only holds a classifier's heads, but this segmentation model has 'seg_head' "
        f"(linear); {', '.join(every_model[:-1])} and {every_model[-1]} can hold this model"
    )
