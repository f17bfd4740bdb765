"""Describes a MiniViT, its backbone and its heads, without the weights. Imports no torch, so plans stay quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from pipeline.errors import ModelError
from pipeline.models.heads import head_kind
from pipeline.models.heads.base import Reads

Pair = tuple[int, int]
Norm = Literal["pre", "post"]
Activation = Literal["relu", "gelu", "quick_gelu"]
Pool = Literal["cls", "avg"]
Positions = Literal["learned", "sincos", "none"]
FewerPatches = Literal["resize", "slice"]

# Fields that surgery cannot change: they make another architecture, not another shape of the same one.
FIXED_FIELDS = ("embed_dim", "depth", "num_heads", "mlp_dim", "norm", "activation", "qk_norm", "embed_norm")


@dataclass(frozen=True)
class TokenSchema:
    """The tokens beside the patches, in order: CLS, [DIST] (DeiT), registers. [MASK] stands in for patches."""

    cls: bool = True
    dist: bool = False
    mask: bool = False
    registers: int = 0
    positions_cover_prefix: bool = True

    @property
    def num_prefix(self) -> int:
        """P: tokens that come before the patch tokens."""
        return int(self.cls) + int(self.dist) + self.registers


@dataclass(frozen=True)
class Windows:
    """Attention in windows of at most `size` x `size` patches, except in every `global_every`-th layer and the last.

    See `window_sides`.
    """

    size: int
    global_every: int = 3


@dataclass(frozen=True)
class ViTSpec:
    """A backbone without its weights; sizes are (height, width), `grid` counts patches and `patch` pixels.

    `embed_norm` is a norm between the embeddings and the encoder, as in CLIP. `fewer_patches` selects whether positions
    are resized, or sliced as in the tutorial, for an image with fewer patches than `grid`. `windows` is None if every
    layer is global. Raises `ModelError` if the fields do not fit together.
    """

    variant: str
    channels: int
    grid: Pair
    patch: Pair
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm: Norm = "pre"
    activation: Activation = "gelu"
    eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    pool: Pool = "cls"
    tokens: TokenSchema = field(default_factory=TokenSchema)
    qk_norm: bool = False
    layer_scale: float | None = None
    positions: Positions = "learned"
    embed_norm: bool = False
    fewer_patches: FewerPatches = "resize"
    windows: Windows | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_choices(self)
        _check_combinations(self)

    @property
    def image_size(self) -> Pair:
        """(height, width) in pixels at which the positions are not interpolated."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_positions(self) -> int:
        """Rows of `pos_embed`: the patches, and the prefix tokens if positions cover them; 0 without positions."""
        if self.positions == "none":
            return 0
        return self.num_patches + (self.tokens.num_prefix if self.tokens.positions_cover_prefix else 0)

    def window_of(self, layer: int) -> int | None:
        """Largest side in patches of the windows of a layer, counted from 0; None if it is global."""
        if self.windows is None or (self.depth - 1 - layer) % self.windows.global_every == 0:
            return None
        return self.windows.size

    def grid_for(self, image_size: Pair) -> Pair:
        """Patches (down, across) of an image of `image_size` pixels; `ModelError` if pixels are left over."""
        return whole_patches(image_size, self.patch)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as written to JSON."""
        return {**asdict(self), "grid": list(self.grid), "patch": list(self.patch)}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ViTSpec:
        """The inverse of `to_dict`; `ModelError` on missing or unknown fields."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(raw.keys() - known)
        if unknown:
            raise ModelError(f"spec: unknown field {unknown[0]!r}; this version knows {', '.join(sorted(known))}")
        try:
            return cls(
                **{
                    **raw,
                    "grid": tuple(raw["grid"]),
                    "patch": tuple(raw["patch"]),
                    "tokens": TokenSchema(**raw.get("tokens", {})),
                    "windows": Windows(**raw["windows"]) if raw.get("windows") else None,
                }
            )
        except (KeyError, TypeError) as error:
            raise ModelError(f"spec: cannot be read ({error}); give one that this package wrote") from error


@dataclass(frozen=True)
class HeadSpec:
    """One head without its weights: kind, a package in `models/heads`, and outputs, such as classes or channels."""

    kind: str
    outputs: int = 0
    options: dict[str, Any] = field(default_factory=dict)


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


def whole_patches(image_size: Pair, patch: Pair) -> Pair:
    """The grid that `patch` cuts an image into, all in (height, width); `ModelError` if pixels are left over."""
    for side, size, length in zip(("height", "width"), image_size, patch, strict=True):
        if length < 1:
            raise ModelError(f"model.patch_size: found {side} {length}, expected at least 1")
        if size < length:
            raise ModelError(
                f"image_size: the {side} {size} is smaller than one patch of {length}; use {length} or more, or a "
                "smaller patch_size"
            )
        if size % length:
            below = size // length * length
            raise ModelError(
                f"image_size: the {side} {size} is not a multiple of the patch size {length}; use {below} or "
                f"{below + length}, or another patch_size"
            )
    return image_size[0] // patch[0], image_size[1] // patch[1]


def window_sides(grid: Pair, most: int) -> Pair:
    """(height, width) in patches of the equal windows that cover a grid: the fewest with sides of at most `most`.

    So 32 patches are cut into three windows of 11, not into two of 14 and a rest that would cost as much as a whole.
    """
    down, across = (-(-side // -(-side // most)) for side in grid)
    return down, across


def window_counts(grid: Pair, sides: Pair) -> Pair:
    """Windows (down, across) of these sides that cover a grid."""
    return -(-grid[0] // sides[0]), -(-grid[1] // sides[1])


def as_pair(size: int | Pair) -> Pair:
    """One number for both sides, or (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_sizes(spec: ViTSpec) -> None:
    counts = {name: getattr(spec, name) for name in ("channels", "embed_dim", "depth", "num_heads", "mlp_dim")}
    for axis, name in enumerate(("height", "width")):
        counts[f"grid {name}"] = spec.grid[axis]
        counts[f"patch {name}"] = spec.patch[axis]
    for name, value in counts.items():
        if value < 1:
            raise ModelError(f"model.{name}: found {value}, expected at least 1")
    if spec.windows is not None:
        numbers = spec.windows.size, spec.windows.global_every
        if not all(isinstance(number, int) and number >= 1 for number in numbers):
            raise ModelError(f"model.windows: found {spec.windows}, expected two whole numbers of at least 1")
    if spec.tokens.registers < 0:
        raise ModelError(f"model.registers: found {spec.tokens.registers}, expected at least 0")
    for name in ("dropout", "drop_path"):
        if not 0 <= getattr(spec, name) < 1:
            raise ModelError(f"model.{name}: found {getattr(spec, name)}, expected at least 0 and below 1")


def _check_choices(spec: ViTSpec) -> None:
    known = {
        "norm": Norm,
        "activation": Activation,
        "pool": Pool,
        "positions": Positions,
        "fewer_patches": FewerPatches,
    }
    for name, choices in known.items():
        if getattr(spec, name) not in get_args(choices):
            raise ModelError(
                f"model.{name}: found {getattr(spec, name)!r}, expected one of {', '.join(get_args(choices))}"
            )


def _check_combinations(spec: ViTSpec) -> None:
    if spec.embed_dim % spec.num_heads:
        fitting = [h for h in range(1, spec.embed_dim + 1) if spec.embed_dim % h == 0]
        nearest = min(fitting, key=lambda h: abs(h - spec.num_heads))
        raise ModelError(
            f"model.num_heads: {spec.num_heads} heads do not divide embed_dim = {spec.embed_dim}; use {nearest} heads"
        )
    if spec.pool == "cls" and not spec.tokens.cls:
        raise ModelError("model.pool: 'cls' needs a class token; set pool: avg, or class_token: true")
    if spec.tokens.dist and spec.pool != "cls":
        raise ModelError("model.pool: the distillation token needs pool: cls, as its logits are averaged with CLS's")
    if spec.windows is not None and spec.dropout:
        raise ModelError(
            f"model.windows: attention in windows does not support dropout, found {spec.dropout}; set dropout: 0"
        )
    if spec.positions == "sincos" and spec.embed_dim % 4:
        raise ModelError(
            f"model.positions: 'sincos' needs embed_dim divisible by 4, found {spec.embed_dim}; set positions: learned"
        )
