from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.checkpoints.manifest import MeterState
from pipeline.errors import DataError
from pipeline.metrics.confusion import ConfusionCounts
from pipeline.models import MiniViT, build_spec
from pipeline.models.bundle import Preprocess
from pipeline.stream.batch import Batch
from pipeline.tasks.classification.module import Classification
from pipeline.train.evaluate import evaluate_collective
from pipeline.train.loop import Meter, TrainingStep

CLASSES = 4
PREPROCESS = Preprocess((0.0,), (1.0,), 1, (2, 2))


def classification(model: nn.Module, classes: int = CLASSES, label_smoothing: float = 0.0) -> Classification:
    return Classification(model, PREPROCESS, [""] * classes, label_smoothing)


class Brightness(nn.Module):
    """Predicts the class that the first pixel names; counts how often it runs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.trained = 0

    def forward(self, images: Tensor) -> Tensor:
        self.trained += self.training
        named = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(named, CLASSES).float() * 9 * self.scale


def batches(seen: list[int], true: list[int], size: int) -> Iterator[Batch]:
    """Batches of `size`, the last padded with weight 0."""
    for start in range(0, len(seen), size):
        pixels, labels = (torch.tensor(values[start : start + size]) for values in (seen, true))
        padding = size - len(pixels)
        pixels, labels = (nn.functional.pad(values, (0, padding)) for values in (pixels, labels))
        yield Batch(
            views={"image": pixels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)},
            targets={"label": labels, "label_mix": labels, "label_share": torch.ones(size)},
            weights=(torch.arange(size) < size - padding).float(),
            slots=torch.arange(size).where(torch.arange(size) < size - padding, -1),
            keys=[""] * size,
            step=0,
        )


@pytest.fixture
def task() -> Classification:
    return classification(Brightness())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_counts_each_sample_once_whatever_the_batch(task: Classification, size: int) -> None:
    seen, true = [0, 1, 2, 3, 0], [0, 1, 1, 3, 2]
    confusion = ConfusionCounts(CLASSES)
    parts = batches(seen, true, size)
    means = evaluate_collective(task, parts, collectors=[confusion])
    assert (means["accuracy"], means["samples"], means["bad_samples"]) == (pytest.approx(0.6), 5, 0)
    assert confusion.table().tolist() == [[0, 0, 1], [1, 1, 1], [1, 2, 1], [2, 0, 1], [3, 3, 1]]


@pytest.mark.usefixtures("one_rank")
def test_bad_samples_are_counted_and_padding_is_not(task: Classification) -> None:
    parts = list(batches([0, 1, 2, 3, 0], [0, 1, 1, 3, 2], 4))
    parts[0].weights[1] = parts[1].weights[0] = 0
    means = evaluate_collective(task, parts)
    assert (means["accuracy"], means["samples"], means["bad_samples"]) == (pytest.approx(2 / 3), 3, 2)


@pytest.mark.usefixtures("one_rank")
def test_an_evaluation_without_any_good_sample_is_an_error(task: Classification) -> None:
    parts = list(batches([0, 1], [0, 1], 2))
    parts[0].weights.zero_()
    with pytest.raises(DataError, match="all 2 evaluation samples are bad"):
        evaluate_collective(task, parts)


@pytest.mark.usefixtures("one_rank")
def test_validation_and_evaluation_give_the_same_loss(task: Classification) -> None:
    smoothing = classification(Brightness(), label_smoothing=0.3)
    results = [evaluate_collective(task, batches([0, 1, 2], [0, 1, 1], 2)) for task in (task, smoothing)]
    assert results[0] == results[1]


@pytest.mark.usefixtures("one_rank")
def test_evaluation_needs_no_memory_for_pairs_of_classes() -> None:
    """K * K counts would be 3.2 TB."""
    classes = 2**19 + 2**17
    confusion = ConfusionCounts(classes)
    parts = batches([0, 1, 2], [0, 1, classes - 1], 3)

    class Wide(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            few = super().forward(images)
            return nn.functional.pad(few, (0, classes - few.shape[1]))

    means = evaluate_collective(classification(Wide(), classes), parts, collectors=[confusion])
    assert means["accuracy"] == pytest.approx(2 / 3)
    assert confusion.table().tolist() == [[0, 0, 1], [1, 1, 1], [classes - 1, 2, 1]]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was(task: Classification, training: bool) -> None:
    task.train(training)
    evaluate_collective(task, batches([0, 1], [0, 1], 2))
    assert task.training == task.model.training == training
    assert task.model.trained == 0


@pytest.mark.usefixtures("one_rank")
def test_meter_reports_means_and_speed_and_starts_anew(task: Classification) -> None:
    meter = Meter.on(torch.device("cpu"), task)
    meter.started, meter.excluded_s = time.perf_counter() - 5.0, 3.0
    meter.sums += torch.tensor([8.0, 3, 4, 4, 4])
    meter.steps, meter.skipped, meter.waited_s = 4, 1, 0.5
    report = meter.report_collective(task, 10)
    assert (report["train/loss"], report["train/accuracy"], report["train/skipped_steps"]) == (2.0, 0.75, 1.0)
    assert report["speed/images_per_s"] == pytest.approx(20, rel=0.05)
    assert report["speed/step_time_s"] == pytest.approx(0.5, rel=0.05)
    assert report["speed/data_wait_share"] == pytest.approx(0.25, rel=0.05)
    assert (meter.steps, meter.skipped, meter.waited_s, meter.excluded_s) == (0, 0, 0.0, 0.0)
    assert not meter.sums.any()
    assert time.perf_counter() - meter.started < 1


@pytest.mark.usefixtures("one_rank")
def test_mixed_samples_have_no_accuracy(task: Classification) -> None:
    meter = Meter.on(torch.device("cpu"), task)
    meter.sums += torch.tensor([8.0, 3, 4, 4, 0])
    report = meter.report_collective(task, 10)
    assert report["train/loss"] == 2.0
    assert "train/accuracy" not in report


@pytest.mark.usefixtures("one_rank")
def test_time_away_is_no_training_time(task: Classification) -> None:
    meter = Meter.on(torch.device("cpu"), task)
    with meter.excluded():
        time.sleep(0.05)
    assert 0.05 <= meter.excluded_s < 5


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("sums", [[[1.5, 2.0, 3.0, 4.0, 4.0]], [[1.0, 1.0, 1.0, 4.0, 4.0], [0.5, 1.0, 2.0, 0.0, 0.0]]])
def test_a_resumed_window_reports_what_an_undisturbed_one_would(task: Classification, sums: list[list[float]]) -> None:
    """Written by one rank, or by two and taken up by one."""
    meter = Meter.on(torch.device("cpu"), task)
    meter.resume(MeterState(3, 1, sums))
    assert meter.state() == MeterState(3, 1, [[1.5, 2.0, 3.0, 4.0, 4.0]])
    meter.sums += torch.tensor([0.5, 0.0, 0.0, 4.0, 4.0])
    assert meter.report_collective(task, 1)["train/loss"] == 0.25


@pytest.mark.usefixtures("one_rank")
def test_a_window_of_other_sums_is_left_out(task: Classification) -> None:
    """As another version of the package may have kept them."""
    meter = Meter.on(torch.device("cpu"), task)
    meter.resume(MeterState(3, 1, [[1.5, 2.0, 3.0]]))
    assert meter.state() == MeterState(0, 0, [[0.0] * 5])


class Operators(TorchDispatchMode):
    """The names of all operators that run, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class PlainEngine:
    """What a step asks of its engine up to the update, without DeepSpeed."""

    device = torch.device("cpu")

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> bool:
        return True


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("patch", [(4, 4), (2, 2)])
def test_the_host_never_waits_for_the_device_within_a_micro_batch(patch: tuple[int, int]) -> None:
    """No value is read back, no constant copied there, nothing has a shape that depends on values."""
    spec = build_spec("nano", image_size=8, patch_size=4, channels=1, num_classes=CLASSES, depth=2, drop_path=0.5)
    model = MiniViT.from_spec(spec).train()
    task = classification(model)
    step = TrainingStep(PlainEngine(task), None, 0, 4)
    meter = Meter.on(torch.device("cpu"), task)
    batch = next(batches([0, 1, 2, 3], [0, 1, 2, 3], 4))
    batch.views["image"] = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    step(batch, 0, 2, meter, patch)  # makes the constants
    with Operators() as operators:
        step(batch, 1, 2, meter, patch)
    assert {"native_layer_norm", "native_layer_norm_backward"} <= operators.names
    waits = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "bincount", "unique", "equal"}
    assert operators.names & waits == set()
