from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.models import MiniViT, compiled
from pipeline.models.compiled import GRAPHS_PER_SIZE, compile_layers

Make = Callable[..., MiniViT]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Resets everything that a test compiles or sets."""
    limit, suppress = torch._dynamo.config.recompile_limit, torch._dynamo.config.suppress_errors
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.config.recompile_limit, torch._dynamo.config.suppress_errors = limit, suppress
    torch._dynamo.reset()


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured as usual but run uncompiled, because generating code would take minutes."""
    stock = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: stock(*args, **{**kwargs, "backend": "aot_eager"}))


def step(model: MiniViT, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float32)
    torch.manual_seed(0)
    logits = model(images.to(model.cls_token.dtype))
    return [logits, *torch.autograd.grad(logits.float().square().sum(), list(model.parameters()))]


@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_layers_compute_the_same_in_whole_graphs(
    small_model: Make, dtype: torch.dtype, recompute: str
) -> None:
    model = small_model(depth=3, drop_path=0.4).train().to(dtype)
    expected = step(model, 16)
    model.transformer.recompute_activations(recompute)
    assert compile_layers(model, 1)
    found = step(model, 16)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 3  # the test of the compiler itself, inner layers, and the last


@pytest.mark.usefixtures("quick_backend")
def test_there_are_no_more_graphs_than_the_sizes_need(small_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Sizes of the schedule are compiled once for all layers; others run uncompiled, with correct results."""
    model = small_model(depth=4).train()
    expected = {size: step(model, size) for size in (16, 20, 24, 28, 32, 36, 40, 44)}
    compile_layers(model, 2)
    for _ in range(2):
        for size in (16, 20):
            step(model, size)
            with torch.no_grad():
                model(torch.zeros(3, 3, size, size))
    assert counters["stats"]["unique_graphs"] == 1 + 2 * 4
    for size, outputs in expected.items():
        torch.testing.assert_close(step(model, size), outputs, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] <= 1 + 2 * GRAPHS_PER_SIZE


def test_weights_keep_their_names(small_model: Make) -> None:
    model = small_model()
    names = list(model.state_dict())
    compile_layers(model, 1)
    assert list(model.state_dict()) == names


def test_where_nothing_compiles_the_model_runs_as_it_is(
    small_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    expected = model(torch.zeros(1, 3, 16, 16))

    def no_compiler(function: object) -> Callable[..., None]:
        def fail(*arguments: object) -> None:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

        return fail

    monkeypatch.setattr(compiled.torch, "compile", no_compiler)
    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model, 1)
    [record] = caplog.records
    assert record.message == (
        "engine.compile: torch.compile does not work on this machine "
        "(InvalidCxxCompiler: No working C++ compiler found); the model runs uncompiled"
    )
    assert torch.equal(model(torch.zeros(1, 3, 16, 16)), expected)
