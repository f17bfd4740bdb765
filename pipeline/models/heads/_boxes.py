"""Heads that detect boxes: candidates, each with a box and logits. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.models.heads._layers import PatchKind

COORDINATES = 4  # per candidate, before its logits


class BoxKind(PatchKind):
    """Their output is fp32 [B, candidates, 4 + logits].

    Boxes are centre x, centre y, width and height as shares of the image. `matching` is the number of candidates that
    learn an object: `one`, with a last logit for no object and a softmax over all, or `many` close to it, with a
    sigmoid per class, of which prediction suppresses all but the best.
    """

    output = "candidates"
    matching: ClassVar[Literal["one", "many"]]
