"""Keypoints: heat maps in the view of an instance, evaluated in the pixels of its image.

Legend: B batch, K keypoints, n instances of all images of a batch, (h, w) cells of heat maps, (H, W) a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.images.boxes import draw_boxes
from pipeline.images.keypoints import draw_keypoints
from pipeline.metrics.keypoints import VISIBLE, ImageInstances, KeypointResults, right_keypoints
from pipeline.models.spec import Pair
from pipeline.tasks.base import Compared, Evaluated, Outputs, TaskModule, Tensors
from pipeline.tasks.keypoints.heat_maps import gaussians, peaks
from pipeline.tasks.keypoints.instances import BatchInstances, boxes_of, cut_out, frames, moved
from pipeline.tasks.keypoints.pictures import FirstInstances

if TYPE_CHECKING:
    from pipeline.images.decode import Pixels
    from pipeline.metrics.collector import Collector
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.stream.batch import Batch
    from pipeline.tasks.keypoints import Task

NOWHERE = float(1 << 21)  # pixels; far outside any image, so that nothing is drawn


class KeypointDetection(TaskModule):
    """The model with its loss and measures; unlabelled keypoints are ignored.

    The loss of a keypoint is the mean squared error of its heat map, as in ViTPose; it is normalised by the number of
    labelled keypoints in the global batch. Sums: the loss, its keypoints, the evaluated keypoints, and the right ones.
    """

    sum_names = ("loss", "keypoints", "judged", "right")
    output_names = ("keypoints",)

    def __init__(self, model: MiniViT, task: Task, names: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(model, preprocess)
        self.names, self.sigma, self.flip_test = list(names), task.sigma, task.flip_test
        self.mirror, self.sigmas = task.mirror(names), task.sigmas_of(names)

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [1]: number of labelled keypoints."""
        return ((batch.targets["keypoints"][..., 2] > 0).sum(dim=1) * batch.weights.double()).sum()[None]

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        """Loss of one instance per image. Mirrored views have left and right swapped."""
        keypoints, mirrored = targets["keypoints"], targets["mirrored"]
        keypoints = keypoints[:, self.mirror].where(mirrored[:, None, None], keypoints)
        losses = self._map_losses(self._maps(views["image"]), keypoints, _view(views["image"]))
        loss = losses.sum(dim=1) @ weights
        counted = ((keypoints[..., 2] > 0).sum(dim=1).double() * weights).sum()
        return Outputs(loss[None], torch.stack([loss.detach().double(), counted, counted * 0, counted * 0]))

    def _maps(self, images: Tensor) -> Tensor:
        """fp32 [B, K, h, w]."""
        maps: Tensor = self.model(images)
        return maps.float()

    def _map_losses(self, maps: Tensor, keypoints: Tensor, view: Pair) -> Tensor:
        """[B, K]: losses for keypoints [B, K, 3] in pixels of a view; 0 for unlabelled keypoints."""
        wanted = gaussians(keypoints[..., :2], view, (maps.shape[2], maps.shape[3]), self.sigma)
        return (maps - wanted).square().mean(dim=(2, 3)) * (keypoints[..., 2] > 0)

    def tested(self, images: Tensor) -> Tensor:
        """Heat maps for predictions; with the flip test, averaged over a view and its mirror image."""
        maps = self._maps(images)
        if self.flip_test:
            maps = (maps + self._maps(images.flip(3)).flip(3)[:, self.mirror]) / 2
        return maps

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Evaluate every instance of every image in one call of the model.

        `predicted` holds an `ImageInstances` per image.
        A rank without instances also calls the model, as all ranks gather weights together under ZeRO-3.
        """
        view = _view(views["image"])
        found = BatchInstances.of(targets, views["image"].shape[1], view)
        count = len(found.views)
        pixels = found.views if count else found.views.new_zeros(1, *found.views.shape[1:])
        maps = self.tested(self.preprocess.normalise(pixels))[:count]
        there, back = frames(found.boxes.cpu().numpy(), view, maps)
        guesses = peaks(maps, view).double()
        guesses = torch.cat([moved(guesses[..., :2], back), guesses[..., 2:]], dim=2)

        of_images = torch.tensor(found.counts, device=weights.device)
        good = (weights > 0).repeat_interleave(of_images, output_size=count)[:, None]
        seen = moved(found.keypoints[..., :2], there)
        inside = ((seen >= 0) & (seen < torch.tensor(view[::-1], device=seen.device))).all(dim=2)
        shown = torch.cat([seen, (found.keypoints[..., 2] * (inside & good))[..., None]], dim=2)
        losses, labelled = self._map_losses(maps, shown, view), (found.keypoints[..., 2] > 0) & good
        right = right_keypoints(guesses, found.keypoints, found.boxes) & good
        counts = [(shown[..., 2] > 0).sum(), labelled.sum(), right.sum()]
        sums = torch.stack([losses.double().sum(), *(number.double() for number in counts)])
        parts = [part.cpu() for part in (found.keypoints, found.boxes, found.areas, guesses)]
        split = zip(*(part.split(found.counts) for part in parts), strict=True)
        return Evaluated(sums, [ImageInstances(*(part.numpy() for part in image)) for image in split])

    def exported(self) -> nn.Module:
        return Places(self)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Training has no PCK, as the boxes of its views are unknown."""
        loss, keypoints, judged, right = sums.tolist()
        return {"loss": loss / max(keypoints, 1.0), **({"pck": right / judged} if judged else {})}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        results: dict[str, Collector] = {"results": KeypointResults(self.sigmas)}
        return results if validation else {**results, "pictures": FirstInstances(self.preprocess.eval)}

    def mistakes(self, predicted: Sequence[ImageInstances], batch: Batch) -> Tensor:
        """The share of an image's labelled keypoints that PCK counts as wrong."""
        return torch.tensor([wrong_share(one) for one in predicted])

    def compared(self, predicted: Sequence[ImageInstances], batch: Batch, row: int) -> Compared:
        one, (height, width) = predicted[row], batch.targets["keypoints_size"][row].tolist()
        labelled = one.truth[:, :, 2:] > 0
        boxes = {"boxes": one.boxes.tolist(), "names": self.names}
        truth, guess = (np.where(labelled, points, NOWHERE).tolist() for points in (one.truth, one.predicted))
        caption = f"{1 - wrong_share(one):.0%} of the labelled keypoints right"
        return Compared((height, width), {**boxes, "keypoints": truth}, {**boxes, "keypoints": guess}, caption)

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[dict[str, Any]]:
        """`boxes` [[x0, y0, x1, y1], ...], the `keypoints` [[[x, y, score], ...], ...] of each, and their `names`.

        All coordinates are in pixels of the image. The option `boxes` sets the boxes of every image; default: a single
        box, the whole image.
        """
        every, view = boxes_of(options.get("boxes"), sizes), self.preprocess.image_size
        black = self.preprocess.normalise(torch.zeros(1, images.shape[1], 1, 1, dtype=torch.uint8))[0].to(images.device)
        found = []
        for image, size, boxes in zip(images, sizes, every, strict=True):
            points = np.zeros((0, len(self.names), 3))
            if len(boxes):
                cut = cut_out(image, size, boxes, view, self.preprocess.eval, black)
                guesses, (_, back) = peaks(self.tested(cut), view).double(), frames(boxes, view, cut)
                points = torch.cat([moved(guesses[..., :2], back), guesses[..., 2:]], dim=2).cpu().numpy()
            found.append({"boxes": boxes.tolist(), "keypoints": points.tolist(), "names": self.names})
        return found

    def draw(self, picture: Pixels, predicted: dict[str, Any]) -> Pixels:
        """Draw boxes, and points in the colours of the keypoints."""
        drawn = picture.copy()
        draw_boxes(drawn, np.array(predicted["boxes"]).reshape(-1, 4), [0] * len(predicted["boxes"]))
        for points in predicted["keypoints"]:
            draw_keypoints(drawn, np.array(points)[:, :2], np.full(len(points), VISIBLE))
        return drawn

    def record(self, predicted: dict[str, Any]) -> dict[str, Any]:
        return predicted


def wrong_share(one: ImageInstances) -> float:
    """The share of an image's labelled keypoints that PCK counts as wrong; 0 if none are labelled."""
    labelled = one.truth[:, :, 2] > 0
    right = right_keypoints(*map(torch.from_numpy, (one.predicted, one.truth, one.boxes))).numpy()
    return float((labelled & ~right).sum() / max(labelled.sum(), 1))


class Places(nn.Module):
    """Views of instances [B, C, H, W] -> keypoints, fp32 [B, K, 3]: (x, y) in pixels of the view, and scores."""

    def __init__(self, task: KeypointDetection) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        return peaks(self.task.tested(images), _view(images))


def _view(images: Tensor) -> Pair:
    return images.shape[2], images.shape[3]
