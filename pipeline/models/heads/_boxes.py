"""Heads that find boxes: candidates, each with a box and logits. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.models.heads._layers import PatchKind

COORDINATES = 4  # of a candidate, before its logits


class BoxKind(PatchKind):
    """Their output is fp32 [B, candidates, 4 + logits].

    Boxes are middle x, middle y, width and height in shares of the image. `matching` says what an object is learned by:
    `one` candidate, with a last logit for those that are none and a softmax over all, or `many` close to it, with a
    sigmoid for each class, of which prediction suppresses all but the best.
    """

    output = "candidates"
    matching: ClassVar[Literal["one", "many"]]
