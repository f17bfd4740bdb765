"""Describes a whole model, its backbone and its heads, without the weights. Imports no torch, so plans stay quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.errors import ModelError
from pipeline.models.heads import head_kind
from pipeline.models.heads.base import Reads
from pipeline.models.spec import HeadSpec, ViTSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole model without its weights; a head's name prefixes its tensors. `task` is the type it was trained for.

    Raises `ModelError` for heads that do not fit the backbone or each other.
    """

    backbone: ViTSpec
    heads: dict[str, HeadSpec]
    task: str = "classification"

    def __post_init__(self) -> None:
        for name, head in self.heads.items():
            kind = head_kind(head.kind)
            kind.check(head, self.backbone)
            refined = kind.refines(head)
            if refined is not None and refined not in self.heads:
                raise ModelError(f"heads.{name}: a {head.kind} head needs the head {refined!r}, which the model lacks")
        counts = {name: head.outputs for name, head in self.heads.items() if head_kind(head.kind).class_tensors(head)}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ModelError(f"heads: found different numbers of classes ({listed}); give all the same")

    @classmethod
    def classifier(cls, backbone: ViTSpec, num_classes: int) -> ModelSpec:
        """Returns the tutorial's model: a backbone with a classifier."""
        return cls(backbone, classifier_heads(backbone, num_classes))

    @property
    def num_classes(self) -> int:
        """Rows of the heads whose outputs are classes; 0 without such a head."""
        return next((h.outputs for h in self.heads.values() if head_kind(h.kind).class_tensors(h)), 0)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of a forward pass's outputs: a single head's output, the names of several heads, or `features`."""
        answering = {}
        for name, head in self.heads.items():
            kind = head_kind(head.kind)
            if kind.reads(head, self.backbone) is not None and kind.refines(head) is None:
                answering[name] = kind.output
        return tuple(answering) if len(answering) > 1 else tuple(answering.values()) or ("features",)

    def with_backbone(self, **changes: Any) -> ModelSpec:
        """The same heads on a backbone that differs in these fields."""
        return replace(self, backbone=replace(self.backbone, **changes))

    @property
    def is_classifier(self) -> bool:
        """Whether its heads are exactly those of a classifier."""
        return self.heads.keys() == classifier_heads(self.backbone, self.num_classes).keys()

    @property
    def is_backbone(self) -> bool:
        """Whether it has no heads other than those of its pretraining."""
        return all(head_kind(head.kind).dropped for head in self.heads.values())

    def require_classifier(self, form: str, *, or_backbone: bool = False) -> None:
        """Raise `ModelError` unless these are a classifier's heads, the only ones that a `form` of weights can hold.

        With `or_backbone`, heads of pretraining pass too; the form drops them.
        """
        if not (self.is_classifier or (or_backbone and self.is_backbone)):
            found = ", ".join(f"{name!r} ({head.kind})" for name, head in self.heads.items()) or "none"
            raise ModelError(f"heads: {form} only holds a classifier's heads, but this {self.task} model has {found}")

    @property
    def reads(self) -> Reads:
        """What a forward pass computes: the union of what its heads read, or everything without heads."""
        kinds = ((head_kind(head.kind), head) for head in self.heads.values())
        each = [reads for kind, head in kinds if (reads := kind.reads(head, self.backbone)) is not None]
        layers = {number for reads in each for number in reads.layers}
        counts = [reads.num_tokens for reads in each if reads.num_tokens is not None]
        whole = len(counts) < len(each) or not each or self.backbone.depth - 1 in layers
        return Reads(tuple(sorted(layers)), None if whole else max(counts))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as written to JSON."""
        heads = {name: asdict(head) for name, head in self.heads.items()}
        return {"backbone": self.backbone.to_dict(), "heads": heads, "task": self.task}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelSpec:
        """Reads `to_dict`'s format, or format 1, a classifier's backbone with `num_classes`; otherwise `ModelError`."""
        try:
            if "num_classes" in raw:
                backbone = ViTSpec.from_dict({name: value for name, value in raw.items() if name != "num_classes"})
                return cls.classifier(backbone, raw["num_classes"])
            backbone = ViTSpec.from_dict(raw["backbone"])
            return cls(backbone, {name: HeadSpec(**head) for name, head in raw["heads"].items()}, raw["task"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelError(f"spec: cannot be read ({error}); give one that this package wrote") from error


def classifier_heads(backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
    """The heads of a classifier, with a second one if the backbone has a distillation token."""
    heads = {"mlp_head": HeadSpec("classifier", num_classes)}
    return heads | ({"dist_head": HeadSpec("distillation", num_classes)} if backbone.tokens.dist else {})
