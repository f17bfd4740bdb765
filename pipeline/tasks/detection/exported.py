"""Output of exported graphs: the best boxes of each image, a fixed number whatever the image shows.

Legend: B batch, A candidates, M kept candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.minivit import MiniViT
from pipeline.tasks.detection import DetectionInference
from pipeline.tasks.detection.objects import overlaps, to_corners

NAMES = "boxes", "scores", "classes"


class BestBoxes(nn.Module):
    """Images -> corners relative to the view fp32 [B, M, 4], scores fp32 [B, M], best first, and classes int64 [B, M].

    If objects have many candidates, the score of one that overlaps a better one of its class is set to 0.
    """

    def __init__(self, model: MiniViT, one_to_one: bool, inference: DetectionInference) -> None:
        super().__init__()
        self.model, self.one_to_one, self.inference = model, one_to_one, inference

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, logits = self.model(images).tensor_split([COORDINATES], dim=2)
        shares = logits.softmax(dim=2)[..., :-1] if self.one_to_one else logits.sigmoid()
        scores, classes = shares.max(dim=2)
        scores, rows = scores.topk(min(self.inference.most, boxes.shape[1]), dim=1)
        classes = classes.gather(1, rows)
        corners = to_corners(boxes.gather(1, rows[..., None].expand(-1, -1, COORDINATES)))
        if not self.one_to_one:
            iou, _ = overlaps(corners[:, :, None], corners[:, None])  # [B, M, M]
            same = classes[:, :, None] == classes[:, None]
            better = torch.ones_like(iou[0]).triu(1) > 0
            scores = scores.masked_fill(((iou > self.inference.overlap) & same & better).any(dim=1), 0.0)
        return corners, scores, classes
