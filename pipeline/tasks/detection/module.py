"""Object detection, evaluated by COCO's average precision on images at their own size.

Legend: B batch, A candidates, K classes, T terms of the loss, (H, W) an image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from pipeline.images.boxes import draw_boxes
from pipeline.metrics.average_precision import AveragePrecision, PredictedBoxes
from pipeline.models.heads import head_kind
from pipeline.models.heads._boxes import COORDINATES, BoxKind
from pipeline.models.spec import Pair
from pipeline.tasks.base import Compared, Evaluated, Outputs, TaskModule, Tensors
from pipeline.tasks.detection import HEAD, LOOKED_AT
from pipeline.tasks.detection.exported import NAMES, BestBoxes
from pipeline.tasks.detection.mistakes import f1
from pipeline.tasks.detection.objects import Objects, at_full_size, evaluation_objects, to_corners, training_objects
from pipeline.tasks.detection.one_to_many import OneToManyLoss
from pipeline.tasks.detection.one_to_one import OneToOneLoss
from pipeline.tasks.detection.pictures import Outlines

if TYPE_CHECKING:
    from pipeline.images.decode import Pixels
    from pipeline.metrics.collector import Collector
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.stream.batch import Batch
    from pipeline.tasks.detection import Task


class Detection(TaskModule):
    """The model with its loss and measures.

    Sums: the T terms of the loss, and the normaliser of each.
    """

    ranked = True

    def __init__(self, model: MiniViT, task: Task, classes: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(model, preprocess)
        self.task, self.classes = task, list(classes)
        head: Any = model.heads[HEAD]
        kind = head_kind(model.spec.heads[HEAD].kind)  # from the model, as an evaluation's settings name none
        assert isinstance(kind, BoxKind)
        self.one_to_one = kind.matching == "one"
        self.learning = (
            OneToOneLoss(len(classes), len(head.queries), task.copies)
            if self.one_to_one
            else OneToManyLoss(head, len(classes))
        )
        terms = self.learning.terms
        self.sum_names = (*(f"loss of {term}" for term in terms), *terms)

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [T]."""
        shape = batch.views["image"].shape
        return self._divisors(training_objects(batch.targets, (shape[-2], shape[-1])), batch.weights, shape)

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        images = views["image"]
        objects = training_objects(targets, (images.shape[2], images.shape[3]))
        losses, _ = self.learning.losses(self._head(), self.model.features(images), objects, weights, keys["image"])
        return Outputs(losses, self._sums(losses, objects, weights, images))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """The loss without denoising; `predicted` holds `PredictedBoxes` for each image, in its own pixels."""
        images = views["image"]
        view, how = (images.shape[2], images.shape[3]), self.preprocess.eval
        objects, features = evaluation_objects(targets, view, how), self.model.features(images)
        losses, candidates = self.learning.losses(self._head(), features, objects, weights, None)
        sizes = [(height, width) for height, width in targets["boxes_full_size"].tolist()]
        found = self._found(candidates, sizes, view, self.task.inference.score)
        return Evaluated(self._sums(losses, objects, weights, images), found)

    def _head(self) -> Any:
        return self.model.get_submodule(HEAD)

    @torch.no_grad()
    def _sums(self, losses: Tensor, objects: Objects, weights: Tensor, images: Tensor) -> Tensor:
        return torch.cat([losses.double(), self._divisors(objects, weights, images.shape)])

    def _divisors(self, objects: Objects, weights: Tensor, shape: Sequence[int]) -> Tensor:
        """float64 [T] for views [..., H, W], on the grid of the model's own patch, whatever the step's patch is."""
        patch = self.model.spec.backbone.patch
        return self.learning.normalisers(objects, weights, (shape[-2] // patch[0], shape[-1] // patch[1]))

    def means(self, sums: Tensor) -> dict[str, float]:
        losses, divisors = sums.chunk(2)
        return {"loss": float((losses / divisors.clamp(min=1)).sum())}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        """Validation has the same mAP, but not by object size."""
        precision = AveragePrecision(len(self.classes), by_size=not validation)
        if validation:
            return {"precision": precision}
        return {"precision": precision, "pictures": Outlines(self.preprocess.eval, self.task.inference.shown)}

    def mistakes(self, predicted: Sequence[PredictedBoxes], batch: Batch) -> Tensor:
        """1 - F1 of the boxes that are shown; crowds are ignored."""
        return torch.tensor([1 - f1(*self._pair(predicted, batch, row)) for row in range(len(predicted))])

    def compared(self, predicted: Sequence[PredictedBoxes], batch: Batch, row: int) -> Compared:
        found, boxes, labels = self._pair(predicted, batch, row)
        height, width = batch.targets["boxes_full_size"][row].tolist()
        truth = PredictedBoxes(boxes, torch.ones(len(boxes)), labels)
        return Compared(
            (height, width), self._as_record(truth), self._as_record(found), f"F1 {f1(found, boxes, labels):.2f}"
        )

    def _pair(
        self, predicted: Sequence[PredictedBoxes], batch: Batch, row: int
    ) -> tuple[PredictedBoxes, Tensor, Tensor]:
        """An image's predictions to show, and its labelled boxes and classes without crowds, all on the CPU."""
        one, offsets = (
            PredictedBoxes(*(part.cpu() for part in predicted[row])),
            batch.targets["boxes_full.offsets"].tolist(),
        )
        own, good = slice(offsets[row], offsets[row + 1]), one.scores >= self.task.inference.shown
        boxes, labels, crowds = (batch.targets[name][own].cpu() for name in ("boxes_full", "box_label", "box_crowd"))
        return PredictedBoxes(one.boxes[good], one.scores[good], one.labels[good]), boxes[~crowds], labels[~crowds]

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[Any]:
        """Boxes in pixels of the image itself, best first: {"boxes", "scores", "labels" (names), "classes" (numbers)}.

        The option `score` is the minimum score of a box; default: the setting `inference.shown`.
        """
        least, view = options.get("score", self.task.inference.shown), (images.shape[2], images.shape[3])
        head, features = self._head(), self.model.features(images)
        return [self._as_record(one) for one in self._found(head(features), sizes, view, least)]

    def _as_record(self, one: PredictedBoxes) -> dict[str, list[Any]]:
        numbers = one.labels.tolist()
        names = [self.classes[number] for number in numbers]
        return {"boxes": one.boxes.tolist(), "scores": one.scores.tolist(), "labels": names, "classes": numbers}

    def _found(self, candidates: Tensor, sizes: Sequence[Pair], view: Pair, least: float) -> list[PredictedBoxes]:
        """Filter candidates [B, A, ...] by minimum score and overlap; boxes are in pixels of images of these sizes."""
        boxes, logits = candidates.tensor_split([COORDINATES], dim=2)
        scores = logits.softmax(dim=2)[..., :-1] if self.one_to_one else logits.sigmoid()
        found = []
        for corners, of_classes, size in zip(to_corners(boxes), scores, sizes, strict=True):
            best, labels = of_classes.max(dim=1)
            chosen = best.topk(min(LOOKED_AT, len(best))).indices
            chosen = chosen[best[chosen] >= least]
            full = at_full_size(corners[chosen], size, view, self.preprocess.eval)
            there = (full[:, 2:] > full[:, :2]).all(dim=1)
            full, chosen = full[there], chosen[there]
            if not self.one_to_one:
                kept = batched_nms(full, best[chosen], labels[chosen], self.task.inference.overlap)
                full, chosen = full[kept], chosen[kept]
            most = self.task.inference.most
            found.append(PredictedBoxes(full[:most], best[chosen][:most], labels[chosen][:most]))
        return found

    def exported(self) -> nn.Module:
        return BestBoxes(self.model, self.one_to_one, self.task.inference)

    @property
    def output_names(self) -> tuple[str, ...]:
        return NAMES

    def draw(self, picture: Pixels, predicted: Any) -> Pixels:
        drawn = picture.copy()
        boxes = torch.tensor(predicted["boxes"]).view(-1, 4).numpy()
        captions = [f"{name} {score:.2f}" for name, score in zip(predicted["labels"], predicted["scores"], strict=True)]
        draw_boxes(drawn, boxes, predicted["classes"], captions)
        return drawn

    def record(self, predicted: Any) -> dict[str, Any]:
        return dict(predicted)

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        """The best score of each detected class."""
        found = []
        for one in self.predict(images, sizes):
            best: dict[str, float] = {}
            for name, score in zip(one["labels"], one["scores"], strict=True):  # the best come first
                best.setdefault(name, score)
            found.append(dict(list(best.items())[:limit]))
        return found
