from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.yaml_text import to_yaml
from pipeline.errors import ConfigError
from pipeline.forecast.known_hardware import KNOWN, find_hardware


@pytest.fixture
def fields() -> dict[str, object]:
    return KNOWN["a100"].model_dump(exclude_defaults=True)


def written(folder: Path, fields: dict[str, object]) -> str:
    path = folder / "ours.yaml"
    path.write_text(to_yaml(fields))
    return str(path)


def test_a_name_is_looked_up() -> None:
    assert find_hardware("a100") is KNOWN["a100"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^--hardware: found 'h10', which is neither a known name nor a file; did you mean 'h100'\? "
        r"Allowed: h100, a100, l40s, mi300x, cpu$",
    ):
        find_hardware("h10")


def test_a_file_describes_other_hardware(tmp_path: Path, fields: dict[str, object]) -> None:
    found = find_hardware(written(tmp_path, fields | {"bf16_tflops": 100, "latency_us": 3}))
    assert (found.bf16_tflops, found.latency_us, found.gpus_per_node) == (100, 3, 8)
    assert found.peak_flops(2) == 50e12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bf16_tflops": None}, r"bf16_tflops: missing; set it to a number above 0\."),
        ({"memory_gb": 80}, r"memory_gb: .*memory_gib"),
        ({"memory_gib": -1}, r"memory_gib: found -1, .*above 0"),
        ({"gpus_per_node": "eight"}, r"gpus_per_node: found 'eight', expected a whole number"),
        ({"achieved_flops": 1.5}, r"achieved_flops: found 1\.5, .*1"),
    ],
)
def test_a_faulty_file_is_refused_by_field(
    tmp_path: Path, fields: dict[str, object], changed: dict[str, object], message: str
) -> None:
    merged = {name: value for name, value in (fields | changed).items() if value is not None}
    with pytest.raises(ConfigError, match=rf"^.*ours\.yaml: {message}"):
        find_hardware(written(tmp_path, merged))


def test_a_file_without_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"found \[1\], expected a mapping with the fields bf16_tflops, fp32_tflops"):
        find_hardware(str(path))
