"""Output of exported graphs: the best boxes of each image, a fixed number whatever the image shows.

Legend: B batch, A candidates, L candidates looked at, M kept candidates.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.minivit import MiniViT
from pipeline.tasks.detection import LOOKED_AT, DetectionInference
from pipeline.tasks.detection.objects import overlaps, to_corners

NAMES = "boxes", "scores", "classes"
ROUNDS = 16  # of suppression: a loop that ends by itself cannot be traced


class BestBoxes(nn.Module):
    """Images -> corners relative to the view fp32 [B, M, 4], scores fp32 [B, M], best first, and classes int64 [B, M].

    If objects have many candidates, those that predictions leave out for a better one of their class have a score of 0.
    """

    def __init__(self, model: MiniViT, one_to_one: bool, inference: DetectionInference) -> None:
        super().__init__()
        self.model, self.one_to_one, self.inference = model, one_to_one, inference

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, logits = self.model(images).tensor_split([COORDINATES], dim=2)
        shares = logits.softmax(dim=2)[..., :-1] if self.one_to_one else logits.sigmoid()
        scores, classes = shares.max(dim=2)
        most, looked_at = (min(count, boxes.shape[1]) for count in (self.inference.most, LOOKED_AT))
        scores, rows = scores.topk(most if self.one_to_one else looked_at, dim=1)
        corners, classes = to_corners(_chosen(boxes, rows)).clamp(0, 1), classes.gather(1, rows)
        if not self.one_to_one:
            scores, rows = scores.where(self._unbeaten(corners, classes), 0.0).topk(most, dim=1)
            corners, classes = _chosen(corners, rows), classes.gather(1, rows)
        return corners, scores, classes

    def _unbeaten(self, corners: Tensor, classes: Tensor) -> Tensor:
        """Bool [B, L]: what non-maximum suppression keeps of corners [B, L, 4], best first, and classes [B, L].

        A round removes the candidates that overlap a better one kept by the round before. This is greedy suppression
        unless the fate of a candidate depends on a chain of more than ROUNDS others.
        """
        iou, _ = overlaps(corners[:, :, None], corners[:, None])  # [B, L, L]
        same = classes[:, :, None] == classes[:, None]
        beats = ((iou > self.inference.overlap) & same).triu(1)  # by row: a better candidate
        kept = (corners[..., 2:] > corners[..., :2]).all(dim=2)
        there = kept
        for _ in range(ROUNDS):
            kept = there & ~(beats & kept[:, :, None]).any(dim=1)
        return kept


def _chosen(boxes: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, M] of boxes [B, A, 4]."""
    return boxes.gather(1, rows[..., None].expand(-1, -1, COORDINATES))
