"""Describes a backbone, and a head, without the weights. Imports no torch, so plans stay quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config.architecture import Activation, FewerPatches, Norm, Pool, Positions
from pipeline.errors import ModelError

Pair = tuple[int, int]

# Fields that surgery cannot change: they make another architecture, not another shape of the same one.
FIXED_FIELDS = ("embed_dim", "depth", "num_heads", "mlp_dim", "norm", "activation", "qk_norm", "embed_norm")


@dataclass(frozen=True)
class TokenSchema:
    """The tokens besides the patches, in order: CLS, [DIST] (DeiT), registers. [MASK] stands in for patches."""

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
    for name, choices in _choices().items():
        if getattr(spec, name) not in choices:
            raise ModelError(f"model.{name}: found {getattr(spec, name)!r}, expected one of {', '.join(choices)}")


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """Allowed values of the fields that have a choice."""
    return {name: get_args(hint) for name, hint in get_type_hints(ViTSpec).items() if get_origin(hint) is Literal}


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
