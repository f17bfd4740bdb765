"""What is refused before a cluster starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.synthetic import CLASSES, SIDE, write_shards
from pipeline.config.cluster import ClusterConfig
from pipeline.config.probe import KnnConfig, MethodsConfig, RetrievalConfig
from pipeline.errors import ConfigError, ModelError, PipelineError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.shards.named_sets import named_set
from pipeline.stages.probe_models import probe_models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_shards(folder / "data")
    for name, options in (("good", {}), ("patches", {"class_token": False})):
        spec = build_spec("nano", image_size=SIDE, patch_size=4, channels=1, num_classes=4, depth=1, **options)
        preprocess = Preprocess((0.4,), (0.3,), 1, (SIDE, SIDE))
        Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, CLASSES).save(folder / name)
    (folder / "done").mkdir()
    (folder / "done" / "probe.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("models", "changes", "kind", "expected"),
    [
        (["missing"], {}, ModelError, "missing: does not exist"),
        (["random", "pixels"], {}, ConfigError, "evaluate: random and pixels take their shape from a model"),
        (["patches"], {"features": "cls"}, ConfigError, "patches has no class token; use patches or both"),
        (["good"], {"out": "done"}, ConfigError, "--out: {place}/done already has a probe"),
        (
            ["good"],
            {"methods": MethodsConfig(knn=KnnConfig(k=97))},
            ConfigError,
            "--probe.knn.k: found 97, but the training data have 96 good samples; use at most 96",
        ),
        (
            ["good"],
            {"methods": MethodsConfig(retrieval=RetrievalConfig(at=[37]))},
            ConfigError,
            "--probe.retrieval.at: found 37, but the test data have 37 good samples",
        ),
    ],
)
def test_what_is_refused(
    place: Path, models: list[str], changes: dict[str, Any], kind: type[PipelineError], expected: str
) -> None:
    given: dict[str, Any] = {"methods": MethodsConfig(knn=KnnConfig()), "features": "both", "out": None} | changes
    given["out"] = given["out"] and place / given["out"]
    train, test = (named_set(f"{place}/data/{name}-*.tar") for name in ("train", "test"))
    references = [name if name in ("random", "pixels") else str(place / name) for name in models]
    with pytest.raises(kind) as caught:
        probe_models(
            references, train, test, ClusterConfig(), batch_size=8, loader_workers=0, precision="fp32", **given
        )
    assert expected.format(place=place) in str(caught.value)
