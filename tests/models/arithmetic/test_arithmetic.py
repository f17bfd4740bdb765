from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.arithmetic import attention, cpu, draws_reach, linear
from pipeline.models.arithmetic.cpu import pieces, rules

ROWS, INPUTS, OUTPUTS = 37, 24, 40
SHAPES = (ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,)


@pytest.fixture(params=[1 << 19, 200], ids=["one piece", "many pieces"])
def cut_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", request.param)


@pytest.fixture(params=["none", "vector", "matrix"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bf16 arithmetic of a CPU; torch computes the same results on each, only at different speeds."""
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: request.param})
    return str(request.param)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of a fixed weighting of it."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weighting.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def operands(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("gelu", [False, True])
def test_linear_in_fp32(gelu: bool) -> None:
    inputs = operands((2, ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,))
    ours = with_gradients(lambda x, w, b: linear(x, w, b, gelu=gelu), *inputs)
    stock = with_gradients(lambda x, w, b: F.linear(F.gelu(x) if gelu else x, w, b), *inputs)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-5)


def exact(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    x, weight, bias = (tensor.double() for tensor in (x, weight, bias))
    return F.linear(F.gelu(x) if gelu else x, weight, bias)


@pytest.mark.usefixtures("cut_up", "arithmetic")
@pytest.mark.parametrize("gelu", [False, True])
def test_linear_in_bf16_is_as_exact_as_bf16(gelu: bool) -> None:
    """Inputs, outputs and gradients are bf16; only their last bits differ, however many pieces are summed."""
    inputs = operands((8, ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,), dtype=torch.bfloat16)
    ours = with_gradients(lambda x, w, b: linear(x, w, b, gelu=gelu), *inputs)
    truth = with_gradients(lambda x, w, b: exact(x, w, b, gelu), *inputs)
    assert {tensor.dtype for tensor in ours} == {torch.bfloat16}
    for found, expected in zip(ours, truth, strict=True):
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < 2**-7


@pytest.mark.usefixtures("arithmetic")
def test_only_the_input_of_an_activated_product_is_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x, weight, bias = (tensor.requires_grad_() for tensor in operands(*SHAPES, dtype=torch.bfloat16))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear(x, weight, bias, gelu=True)
    assert sorted(kept) == sorted([x.numel(), weight.numel()])


def test_no_gradient_is_computed_for_images() -> None:
    x, weight, bias = operands((ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,), dtype=torch.bfloat16)
    linear(x, weight.requires_grad_(), bias.requires_grad_()).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_autocast_is_left_to_torch() -> None:
    x, weight, bias = operands((ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert linear(x.bfloat16(), weight, bias, gelu=True).shape == (ROWS, OUTPUTS)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("queries", [1, 9])
def test_attention_in_bf16_is_as_exact_as_bf16(samples: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", 300)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that a group is one or two samples
    # As the encoder has them: heads are strided views of one tensor.
    packed = operands((samples, 9, 3 * 32), dtype=torch.bfloat16)[0]
    q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
    inputs = (q[:, :, :queries], k, v)
    ours = with_gradients(attention, *inputs)
    truth = with_gradients(lambda *x: F.scaled_dot_product_attention(*(tensor.double() for tensor in x)), *inputs)
    assert {tensor.dtype for tensor in ours} == {torch.bfloat16}
    for found, expected in zip(ours, truth, strict=True):
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < 2**-6


@pytest.mark.parametrize(("tokens", "expected"), [(12, 8), (96, 2), (2048, 0)])
def test_attention_keeps_the_weights_of_as_many_samples_as_take_a_sixth(
    tokens: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 samples with heads of 16 channels: those whose weights are 2 values per token and channel of all."""
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: "vector"})
    q, k, v = (x.requires_grad_() for x in operands(*[(8, 1, tokens, 16)] * 3, dtype=torch.bfloat16))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(q, k, v)
    assert [tensor.shape for tensor in kept] == [*[q.shape] * 3, (expected, 1, tokens, tokens)]
    with torch.no_grad():
        assert rules.kept_samples(q, k) == 0


@pytest.mark.parametrize("keep", [0, 3, 8])
def test_kept_and_recomputed_weights_give_the_same_gradients(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", 300)  # groups of a few samples
    q, k, v, grad = operands(*[(8, 2, 9, 16)] * 4, dtype=torch.bfloat16)
    _, weights = torch.ops.minivit.attend(q, k, v, keep)
    assert len(weights) == keep
    found = torch.ops.minivit.attend_backward(grad, q, k, v, weights)
    expected = torch.ops.minivit.attend_backward(grad, q, k, v, weights[:0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_large_scores_are_not_rounded_before_the_softmax(arithmetic: str) -> None:
    """In bf16 scores of 60 are off by up to 1/8, and so would be their weights, relative to each other."""
    q, k = torch.zeros(2, 1, 1, 4, 16)
    q[..., 0], k[..., 0] = 15.0, torch.tensor([16.0, 16.125, 15.875, 0.0])  # exact in bf16, their products are not
    v = torch.eye(4, 16)[None, None]
    found = attention(*(tensor.bfloat16() for tensor in (q, k, v)))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(found.double(), expected, atol=2**-8, rtol=2**-8)


def test_long_sequences_attend_without_holding_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: "vector"})
    q = torch.zeros(1, 2, 9, 16, dtype=torch.bfloat16)
    assert rules.attends_by_products(q, q)
    monkeypatch.setattr(rules, "SCORES_VALUES", 2 * 9 * 9 - 1)
    assert not rules.attends_by_products(q, q)


def test_a_compiler_sees_attention_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: "vector"})
    torch._dynamo.reset()
    q, k, v = operands(*[(2, 2, 9, 16)] * 3, dtype=torch.bfloat16)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, q, k, v), with_gradients(attention, q, k, v))
    torch._dynamo.reset()


@pytest.mark.usefixtures("arithmetic")
def test_attention_drops_out_where_asked() -> None:
    q, k, v = operands(*[(2, 2, 9, 16)] * 3, dtype=torch.bfloat16)
    whole, half = attention(q, k, v, drop=lambda weights: weights), attention(q, k, v, drop=lambda weights: weights / 2)
    torch.testing.assert_close(whole, attention(q, k, v), atol=1e-2, rtol=1e-2)
    assert torch.equal(half, whole / 2)


def test_prediction_before_training_does_no_harm() -> None:
    inputs = operands((ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,), dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = linear(*inputs, gelu=True)
    torch.testing.assert_close(with_gradients(lambda *x: linear(*x, gelu=True), *inputs)[0], expected)


def test_other_devices_never_pass_through_the_arithmetic_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("the arithmetic of a CPU was used")

    for name in ("linear", "attention", "draws_reach"):
        monkeypatch.setattr(cpu, name, refuse)
    x, weight, bias = (tensor.to("meta") for tensor in operands(*SHAPES, dtype=torch.bfloat16))
    assert linear(x, weight, bias, gelu=True).shape == (ROWS, OUTPUTS)
    q = torch.zeros(2, 3, 5, 8, device="meta")
    assert attention(q, q, q).shape == attention(q, q, q, lambda weights: weights).shape == q.shape
    assert draws_reach(0, torch.zeros(6, dtype=torch.int64, device="meta"), 9).shape == (6, 9)
    with pytest.raises(AssertionError, match="the arithmetic of a CPU was used"):
        linear(*operands(*SHAPES))
