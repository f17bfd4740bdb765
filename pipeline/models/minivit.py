"""MiniViT: the tutorial's Vision Transformer, with everything else as keyword-only options on top.

Legend: B batch, C channels, (H, W) image, (h, w) grid, N = h * w patches, P prefix tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.costs import frozen_layers
from pipeline.models.encoder import Encoder
from pipeline.models.heads import head_kind
from pipeline.models.heads.base import Reads
from pipeline.models.heads.head import Features, Head
from pipeline.models.init import initialise
from pipeline.models.model_spec import ModelSpec
from pipeline.models.patch_embed import PatchEmbed
from pipeline.models.pos_embed import fit_positions, is_known, sincos_positions
from pipeline.models.spec import Pair, whole_patches
from pipeline.models.tokens import prefix_layout
from pipeline.models.variants import build_spec

TOKENS = ("cls_token", "dist_token", "registers", "mask_token", "pos_embed")  # vectors, whatever their rank
EMBEDDING = ("patch_embed", "embed_norm", *TOKENS)


class MiniViT(nn.Module):
    """A ViT with heads; positional arguments, their defaults and state keys are those of the tutorial's classifier.

    Accepts images of any size that is a multiple of the patch: positions are interpolated on the fly, so one learned
    grid trains at every size (for fewer patches the tutorial slices instead: `fewer_patches`). The patch kernel is
    resized too while `patch`, (height, width) in pixels, differs from the spec's; `per_step` sets it. Raises
    `ModelError` for invalid settings or images.
    """

    cls_token: nn.Parameter | None
    dist_token: nn.Parameter | None
    registers: nn.Parameter | None
    mask_token: nn.Parameter | None
    pos_embed: Tensor | None

    def __init__(
        self,
        img_size: int | Pair = 224,
        patch_size: int | Pair = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        num_classes: int = 10,
        depth: int = 6,
        num_heads: int = 8,
        *,
        init: str | None = None,
        **overrides: Any,
    ) -> None:
        """`init` as in `from_spec`; `overrides` as in `build_backbone`, whose tutorial has these defaults."""
        super().__init__()
        spec = build_spec(
            "tutorial",
            image_size=img_size,
            patch_size=patch_size,
            channels=in_channels,
            embed_dim=embed_dim,
            num_classes=num_classes,
            depth=depth,
            num_heads=num_heads,
            **overrides,
        )
        self._build(spec, init)

    @classmethod
    def from_spec(cls, spec: ModelSpec, *, init: str | None = None) -> Self:
        """The model a spec describes, newly initialised (`init`: torch, mae, timm; default by the kind of norm)."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._build(spec, init)
        return model

    @classmethod
    def from_state(cls, spec: ModelSpec, state: Mapping[str, Tensor]) -> Self:
        """The model that a spec describes, in fp32, with weights from a state dict."""
        model = cls.from_spec(spec, init="torch")
        model.load_state_dict(state)
        return model

    def _build(self, spec: ModelSpec, init: str | None) -> None:
        self.spec, self.patch = spec, spec.backbone.patch
        self._build_backbone()
        self._reads = spec.reads
        self._answering: list[tuple[str, str | None]] = []  # heads that `forward` calls, and which one each refines
        for name, head in spec.heads.items():
            assert not hasattr(self, name), f"{name}: the model already uses this name; give the head another name"
            kind = head_kind(head.kind)
            self.add_module(name, kind.build(head, spec.backbone))
            if kind.reads(head, spec.backbone) is not None:
                self._answering.append((name, kind.refines(head)))
        initialise(self, init or ("torch" if spec.backbone.norm == "post" else "mae"))

    def _build_backbone(self) -> None:
        spec, dim = self.spec.backbone, self.spec.backbone.embed_dim
        self.patch_embed = PatchEmbed(spec.channels, dim, spec.patch)
        counts = dict(prefix_layout(spec.tokens))
        for name in ("cls_token", "dist_token", "registers"):
            count = counts.get(name)
            self.register_parameter(name, nn.Parameter(torch.zeros(1, count, dim)) if count else None)
        self.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 1, dim)) if spec.tokens.mask else None)
        if spec.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, spec.num_positions, dim))
        elif spec.positions == "sincos":
            num_prefix = spec.num_positions - spec.num_patches
            self.register_buffer("pos_embed", sincos_positions(spec.grid, dim, num_prefix))
        else:
            self.pos_embed = None
        self.embed_norm = nn.LayerNorm(dim, eps=spec.eps) if spec.embed_norm else None
        self.transformer = Encoder(spec)

    @property
    def heads(self) -> dict[str, Head]:
        """Heads by name, in the spec's order."""
        return {name: getattr(self, name) for name in self.spec.heads}

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: 0 for the embedding, 1 to depth for the blocks, then the heads."""
        owner, _, rest = name.partition(".")
        if owner == "transformer":
            return self.transformer.layer_of(rest)
        if owner in self.spec.heads:
            return head_kind(self.spec.heads[owner].kind).layer(rest, self.spec.backbone.depth)
        assert owner in EMBEDDING, f"{name}: belongs to no known layer"
        return 0

    def freeze(self, share: float) -> None:
        """Freeze the embedding and this share of the layers, from the bottom; a share of 0 freezes nothing.

        Frozen layers keep nothing for a backward pass and use no dropout or drop path.
        """
        if not share:
            return
        self.transformer.num_frozen = frozen_layers(self.spec.backbone, share)
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] not in self.spec.heads and self.layer_of(name) <= self.transformer.num_frozen:
                parameter.requires_grad_(False)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter: to matrices and kernels, not to biases, norms or tokens."""
        owner, _, rest = name.partition(".")
        vectors = head_kind(self.spec.heads[owner].kind).vectors if owner in self.spec.heads else ()
        return name not in TOKENS and rest not in vectors and self.get_parameter(name).ndim >= 2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in PyTorch, except that sine-cosine positions keep their dtype: bf16 would lose digits for good."""
        table = self.pos_embed if self.spec.backbone.positions == "sincos" else None
        super()._apply(fn, recurse)
        if table is not None:
            assert self.pos_embed is not None
            self.pos_embed = table.to(self.pos_embed.device)
        return self

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """[B, C, H, W] normalised floats -> the head's output: a classifier's logits [B, num_classes].

        Several heads give a mapping by name; without a head that reads features, the encoder's output [B, P+N, D].
        """
        return self.apply_heads(self.features(images))

    def features(self, images: Tensor, reads: Reads | None = None) -> Features:
        """[B, C, H, W] -> only the features that the heads read, or those in `reads`."""
        reads = reads or self._reads
        grid, layers = self.grid(images), {}
        outputs = self.transformer.layer_outputs(self.embed(images), reads.num_tokens, grid=grid)
        for number, x in enumerate(outputs):
            if number in reads.layers:
                layers[number] = x
        return Features(x, layers, grid, self.spec.backbone.tokens.num_prefix)

    def apply_heads(self, features: Features) -> Tensor | dict[str, Tensor]:
        """Returns what `forward` does, given `features(images)`."""
        outputs: dict[str, Tensor] = {}
        for name, refined in self._answering:
            head = getattr(self, name)
            if refined is None:
                outputs[name] = head(features)
            else:
                outputs[refined] = head(features, getattr(self, refined), outputs[refined])
        if len(outputs) > 1:
            return outputs
        return next(iter(outputs.values()), features.tokens)

    def forward_features(self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, P+N, D], the encoder's output; `mask` bool [B, N] marks patches replaced by [MASK].

        With `keep`, int64 [B, n], the encoder sees only the patches with these indices: [B, P+n, D] (He et al. 2022).
        """
        if keep is not None and self.spec.backbone.windows is not None:
            raise ModelError("keep: a model with windows cannot leave out patches; build it without windows")
        features: Tensor = self.transformer(self.embed(images, mask, keep), grid=self.grid(images))
        return features

    def forward_intermediates(
        self, images: Tensor, n_layers: int | Sequence[int] = 1, *, norm: bool = False
    ) -> list[Tensor]:
        """Feature maps [B, D, h, w] for dense heads, at any size.

        From the last `n_layers` layers (ViTDet, Segmenter), or from the layers with these numbers, counted from 0
        (DPT); through the class head's norm if `norm`. Raises `ModelError` if the model has fewer layers.
        """
        depth, grid = self.spec.backbone.depth, self.grid(images)
        wanted = range(depth - n_layers, depth) if isinstance(n_layers, int) else n_layers
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise ModelError(f"n_layers: {n_layers}, but there are {depth} layers; use 1 to {depth}, or numbers from 0")
        if norm and "mlp_head" not in self.heads:
            raise ModelError(
                "norm: found true, but this model has no classifier whose norm it could apply; leave it out"
            )
        maps = {}
        outputs = itertools.islice(self.transformer.layer_outputs(self.embed(images), grid=grid), max(wanted) + 1)
        for number, x in enumerate(outputs):
            if number in wanted:
                tokens = self.get_submodule("mlp_head.0")(x) if norm else x
                maps[number] = tokens[:, self.spec.backbone.tokens.num_prefix :].transpose(1, 2).unflatten(2, grid)
        return [maps[number] for number in wanted]

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, depth, heads, P+N, P+N]; see `Encoder.attention_weights`."""
        return self.transformer.attention_weights(self.embed(images), self.grid(images))

    def embed(self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> the encoder's input [B, P+N, D]; `mask` and `keep` as for `forward_features`."""
        if images.ndim != 4 or images.shape[1] != self.spec.backbone.channels:
            raise ModelError(
                f"images: found shape {list(images.shape)}, expected [batch, {self.spec.backbone.channels}, height, "
                "width]"
            )
        grid = self.grid(images)
        x = self.patch_embed(images, self.patch, keep)
        if mask is not None:
            if self.mask_token is None:
                raise ModelError("mask: this model has no [MASK] token; build it with tokens.mask")
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        positions = self._positions(grid, x.dtype)
        if positions is not None and keep is not None:
            of_prefix, of_patches = positions.tensor_split([positions.shape[1] - grid[0] * grid[1]], dim=1)
            of_patches = of_patches.take_along_dim(keep[..., None], dim=1)
            positions = torch.cat([of_prefix.expand(len(keep), -1, -1), of_patches], dim=1)
        prefix = [getattr(self, name) for name, _ in prefix_layout(self.spec.backbone.tokens)]
        prefix = [token.to(x.dtype).expand(x.shape[0], -1, -1) for token in prefix]
        if positions is None:
            x = torch.cat([*prefix, x], dim=1)
        elif self.spec.backbone.tokens.positions_cover_prefix:
            x = torch.cat([*prefix, x], dim=1) + positions
        else:
            x = torch.cat([*prefix, x + positions], dim=1)
        return x if self.embed_norm is None else self.embed_norm(x)

    def grid(self, images: Tensor) -> Pair:
        """Patches (down, across) of these images [B, C, H, W]."""
        return whole_patches((images.shape[-2], images.shape[-1]), self.patch)

    def _positions(self, grid: Pair, dtype: torch.dtype) -> Tensor | None:
        """Positions for a grid. Only the interpolation matrices are cached, because positions are learned, and engines
        change weights without updating autograd's version counters.
        """
        if self.pos_embed is None:
            return None
        if is_known(grid) and grid == self.spec.backbone.grid:
            return self.pos_embed.to(dtype)
        return fit_positions(
            self.pos_embed.float(), self.spec.backbone.grid, grid, self.spec.backbone.fewer_patches
        ).to(dtype)
