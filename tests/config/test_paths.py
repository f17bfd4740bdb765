from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import dump_config, load_config, parse_config
from pipeline.config.paths import expand, literal
from pipeline.errors import ConfigError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/ada", "SCRATCH": "/scratch/ada", "BUCKET": "vits", "TILDE": "~/x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", "/home/ada"),
        ("~/data", "/home/ada/data"),
        ("$SCRATCH/runs", "/scratch/ada/runs"),
        ("${SCRATCH}/train-{000000..000031}.tar", "/scratch/ada/train-{000000..000031}.tar"),
        ("$TILDE", "/home/ada/x"),
        ("s3://$BUCKET/train-{0..3}.tar", "s3://vits/train-{0..3}.tar"),
        ("https://example.org/~ada/a.tar", "https://example.org/~ada/a.tar"),
        ("file://~/data", "file:///home/ada/data"),
        ("sqlite:///~/mlflow.db", "sqlite:////home/ada/mlflow.db"),
        ("timm:local-dir:~/vit", "timm:local-dir:/home/ada/vit"),
        ("data/~/x~", "data/~/x~"),
        ("./~x", "./~x"),
        ("a$$b/$1/$", "a$b/$1/$"),
        ("timm:vit_small_patch16_224", "timm:vit_small_patch16_224"),
    ],
)
def test_what_a_path_means(text: str, expected: str) -> None:
    assert expand(text) == expected


@given(st.text(st.sampled_from("a/${}~ é")).filter(lambda path: not path.startswith("~")))
def test_every_path_can_be_written(path: str) -> None:
    assert expand(literal(path)) == path


SETTINGS = [
    "runs_dir",
    "tracking.uri",
    "datasets.train.shards",
    "datasets.train.cache",
    "stages.pretrain.data.exclude",
    "stages.pretrain.checkpoint.storage",
    "stages.pretrain.init_from",
    "stages.evaluate.models",
    "stages.export.model",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_path_of_a_config_is_expanded(raw: dict[str, Any], tmp_path: Any, setting: str) -> None:
    *parents, key = setting.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    wraps = {"cache": lambda path: {"folder": path, "max_gigabytes": 1}, "models": lambda path: [path]}
    wrap = wraps.get(key, lambda path: path)

    section[key] = wrap("$SCRATCH/a$$b")
    config = parse_config(raw, "c")
    held: Any = config.model_dump()
    for name in setting.split("."):
        held = held[name]
    assert held == wrap("/scratch/ada/a$b")
    (tmp_path / "pipeline.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "pipeline.yaml") == config

    for wrong, expected in (
        ("$UNSET/x", "a path whose variables are set, but $UNSET is not (write $$ for a dollar sign)"),
        ("~no-such-user/x", "a path, but there is no user 'no-such-user'; a folder named ~no-such-user is ./~"),
    ):
        section[key] = wrap(wrong)
        with pytest.raises(ConfigError) as caught:
            parse_config(raw, "c")
        assert str(caught.value).startswith(f"c: {setting}")
        assert f"found '{wrong}', expected {expected}" in str(caught.value)


def test_the_base_may_lie_at_home(raw: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "base.yaml").write_text(dump_config(parse_config(raw, "c")))
    (tmp_path / "c.yaml").write_text("base: ~/base.yaml\nname: other\n")
    assert load_config(tmp_path / "c.yaml").name == "other"
    (tmp_path / "c.yaml").write_text("base: $UNSET/base.yaml\n")
    with pytest.raises(ConfigError, match=r"base: found '\$UNSET/base\.yaml', expected a path whose variables are set"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting != "tracking.uri"])
def test_credentials_are_refused_and_not_repeated(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    *parents, key = setting.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    wraps = {"cache": lambda path: {"folder": path, "max_gigabytes": 1}, "models": lambda path: [path]}
    monkeypatch.setenv("TOKEN", "hunter2")
    for url, found in (
        ("https://me:hunter2@host/x", "https://me:***@host/x"),
        ("https://host/x?sig=hunter2", "https://host/x?sig=***"),
        ("https://me:$TOKEN@host/x", "https://me:***@host/x"),
    ):
        section[key] = wraps.get(key, lambda path: path)(url)
        with pytest.raises(ConfigError, match="expected a URL without a password, token or signature") as caught:
            parse_config(raw, "c")
        assert str(caught.value).startswith(f"c: {setting}")
        assert f"found '{found}'" in str(caught.value)
        assert "hunter2" not in str(caught.value)
