"""The quality of the detections in one image, as a number to rank images by.

Legend: m detected boxes, n labelled boxes.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_iou

from pipeline.metrics.average_precision import PredictedBoxes

OVERLAP = 0.5  # least IoU at which a box of the same class matches a labelled one


def f1(found: PredictedBoxes, boxes: Tensor, labels: Tensor) -> float:
    """The harmonic mean of precision and recall; 1 if there are neither objects nor detections.

    Detections are matched greedily by score to labelled boxes [n, 4] of classes [n], each of which matches only once.
    """
    if not len(found.boxes) + len(boxes):
        return 1.0
    pairs = 0
    if len(found.boxes) and len(boxes):
        overlaps = box_iou(found.boxes.double(), boxes.double()) * (found.labels[:, None] == labels)  # [m, n]
        for row in found.scores.argsort(descending=True).tolist():
            best = int(overlaps[row].argmax())
            if overlaps[row, best] >= OVERLAP:
                pairs += 1
                overlaps[:, best] = 0
    return 2 * pairs / (len(found.boxes) + len(boxes))
