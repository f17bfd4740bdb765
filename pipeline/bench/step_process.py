"""Trains one model on request in its own process, so that its speed and memory are measured in isolation."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.bench.processes import peak_bytes, reset_peak
from pipeline.bench.step_peers import StockViT, timm_vit
from pipeline.models.compiled import compile_layers
from pipeline.models.encoder import Recompute
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_spec
from pipeline.train.device import allow_tf32, precision_dtype, select_device

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepJob:
    """The model to train ("ours", "stock" or "timm") and its settings."""

    contender: str
    spec: ModelSpec
    precision: str
    compiled: bool
    recompute: Recompute
    threads: int


class Contender:
    """A process that holds a model and its optimiser."""

    def __init__(self, job: StepJob) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(job,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def step_s(self, batch_size: int, image_size: int | None = None) -> float:
        """Seconds of one training step on square images of this size; default: the model's own."""
        return self._pool.submit(_step_s, batch_size, image_size).result()

    def peak_bytes(self, batch_size: int) -> int:
        """Peak memory over two steps, minus what the process held before it built the model.

        All resident memory of a CPU process; on a GPU, what torch has allocated. Peaks of earlier steps count.
        """
        return self._pool.submit(_peak_bytes, batch_size).result()


def on_its_own(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a new process and return its result."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Training:
    """Forward, backward and fused AdamW: on the weights in fp32, otherwise on a `MasterCopy`, as ZeRO does.

    Gradients share one permanent block, as in the engine: freed one by one, they would fragment the heap.
    """

    def __init__(self, job: StepJob) -> None:
        torch.manual_seed(0)
        self.spec, self.device, self.dtype = job.spec, select_device(), precision_dtype(job.precision)
        self.model = build_model(job).to(device=self.device, dtype=self.dtype)
        weights = list(self.model.parameters())
        self.gradients = torch.zeros(sum(weight.numel() for weight in weights), dtype=self.dtype, device=self.device)
        for weight, gradient in zip(weights, self.gradients.split([one.numel() for one in weights]), strict=True):
            weight.grad = gradient.view_as(weight)
        self.master = None if self.dtype == torch.float32 else MasterCopy(weights)
        optimised = weights if self.master is None else [self.master.weights]
        self.optimizer = torch.optim.AdamW(optimised, lr=1e-4, fused=True)

    def step_s(self, batch_size: int, image_size: int | None) -> float:
        """Seconds of a step on random images."""
        height, width = self.spec.backbone.image_size if image_size is None else (image_size, image_size)
        images = torch.randn(batch_size, self.spec.backbone.channels, height, width, device=self.device).to(self.dtype)
        labels = torch.randint(self.spec.num_classes, (batch_size,), device=self.device)
        self._wait()
        began = time.perf_counter()
        self._step(images, labels)
        self._wait()
        return time.perf_counter() - began

    def _step(self, images: Tensor, labels: Tensor) -> None:
        F.cross_entropy(self.model(images).float(), labels).backward()
        if self.master:
            self.master.weights.grad = self.gradients.float()
        self.optimizer.step()
        if self.master:
            self.master.weights.grad = None
            self.master.give_weights()
        self.gradients.zero_()

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


class MasterCopy:
    """The fp32 weights of a half-precision model in one flat tensor."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = nn.Parameter(torch.cat([weight.detach().float().flatten() for weight in weights]))
        self._weights: list[Tensor] = list(weights)
        self._sizes = [weight.numel() for weight in weights]

    def take_gradients(self) -> None:
        gradients = [weight.grad.flatten() for weight in self._weights if weight.grad is not None]
        self.weights.grad = torch.cat(gradients).float()

    @torch.no_grad()
    def give_weights(self) -> None:
        new = self.weights.split(self._sizes)
        torch._foreach_copy_(self._weights, [part.view_as(old) for part, old in zip(new, self._weights, strict=True)])


def build_model(job: StepJob) -> nn.Module:
    """The contender's model; ours compiles layer by layer, as in the engine, the others as a whole."""
    if job.contender == "ours":
        model = MiniViT.from_spec(job.spec)
        model.transformer.recompute_activations(job.recompute)
        if job.compiled:
            compile_layers(model, 1)
        return model
    peer = StockViT(job.spec) if job.contender == "stock" else timm_vit(job.spec)
    if job.compiled:
        peer.compile()
    return peer


_HERE: dict[str, Any] = {}


def _begin(job: StepJob) -> None:
    torch.set_num_threads(job.threads)
    allow_tf32()  # as on ranks
    # Excludes what libraries load on first use from the model's memory: the optimiser alone imports torch's compiler.
    Training(replace(job, spec=build_spec("nano", image_size=28, num_classes=10, channels=1))).step_s(1, None)
    reset_peak()
    _HERE["base"], _HERE["training"] = peak_bytes(), Training(job)


def _step_s(batch_size: int, image_size: int | None = None) -> float:
    training: Training = _HERE["training"]
    return training.step_s(batch_size, image_size)


def _peak_bytes(batch_size: int) -> int:
    for _ in range(2):  # the optimiser's state exists from the second step on
        _step_s(batch_size)
    device: torch.device = _HERE["training"].device
    return peak_bytes() - _HERE["base"] if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
