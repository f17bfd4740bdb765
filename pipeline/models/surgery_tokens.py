"""Surgery on the token sequence: prefix tokens and all positions.

Legend: P prefix tokens, (h, w) patch grid, N = h * w, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.pos_embed import fit_positions, sincos_positions
from pipeline.models.spec import ViTSpec
from pipeline.models.tokens import prefix_layout, prefix_slices

TOKEN_STD = 0.02


def adapt_tokens(state: dict[str, Tensor], old: ViTSpec, new: ViTSpec, generator: torch.Generator) -> dict[str, str]:
    """Change `state` in place from `old`'s tokens and positions to `new`'s; returns a note per changed tensor."""
    like = state["patch_embed.proj.weight"]
    old_rows = _prefix_positions(state, old, like)
    kept_grid = _grid_positions(state, old)
    notes = _adapt_prefix(state, old, new, old_rows, like, generator)
    notes |= _adapt_mask(state, old, new, like, generator)
    notes |= _adapt_positions(state, old, new, old_rows, kept_grid, like)
    return notes


def _has_prefix_rows(spec: ViTSpec) -> bool:
    return spec.positions != "none" and spec.tokens.positions_cover_prefix


def _prefix_positions(state: dict[str, Tensor], spec: ViTSpec, like: Tensor) -> dict[str, Tensor]:
    """The position rows [1, count, D] of each prefix parameter; zeros if positions do not cover them."""
    if _has_prefix_rows(spec):
        return {name: state["pos_embed"][:, part] for name, part in prefix_slices(spec.tokens).items()}
    return {name: like.new_zeros(1, count, spec.embed_dim) for name, count in prefix_layout(spec.tokens)}


def _grid_positions(state: dict[str, Tensor], spec: ViTSpec) -> Tensor | None:
    """The patches' positions [1, N, D]."""
    return None if spec.positions == "none" else state["pos_embed"][:, spec.num_positions - spec.num_patches :]


def _adapt_prefix(
    state: dict[str, Tensor],
    old: ViTSpec,
    new: ViTSpec,
    old_rows: dict[str, Tensor],
    like: Tensor,
    generator: torch.Generator,
) -> dict[str, str]:
    """Add, drop or cut the prefix parameters. If their positions stop being learned, fold them in, which is exact."""
    notes, wanted = {}, dict(prefix_layout(new.tokens))
    fold = (
        _has_prefix_rows(old)
        and old.positions == "learned"
        and not (_has_prefix_rows(new) and new.positions == "learned")
    )
    for name, count in prefix_layout(old.tokens):
        if name not in wanted:
            del state[name]
            continue
        if fold:
            state[name] = state[name] + old_rows[name]
            notes[name] = "its position folded in"
        if wanted[name] < count:
            state[name] = state[name][:, : wanted[name]]
            notes[name] = f"{count} -> {wanted[name]} tokens"
    for name, count in wanted.items():
        present = state[name].shape[1] if name in state else 0
        if name == "dist_token" and not present and "cls_token" in state:
            state[name] = state["cls_token"].clone()
            notes[name] = "a copy of the class token"
        elif present < count:
            fresh = _fresh_tokens(count - present, like, generator)
            state[name] = torch.cat([state[name], fresh], dim=1) if present else fresh
            notes[name] = f"{present} -> {count} tokens, the new ones normal({TOKEN_STD})"
    return notes


def _adapt_mask(
    state: dict[str, Tensor], old: ViTSpec, new: ViTSpec, like: Tensor, generator: torch.Generator
) -> dict[str, str]:
    if old.tokens.mask and not new.tokens.mask:
        del state["mask_token"]
    elif new.tokens.mask and not old.tokens.mask:
        state["mask_token"] = _fresh_tokens(1, like, generator)
        return {"mask_token": f"normal({TOKEN_STD})"}
    return {}


def _adapt_positions(
    state: dict[str, Tensor],
    old: ViTSpec,
    new: ViTSpec,
    old_rows: dict[str, Tensor],
    kept_grid: Tensor | None,
    like: Tensor,
) -> dict[str, str]:
    if new.positions == "none":
        state.pop("pos_embed", None)
        return {}
    if new.positions == "sincos" and old.positions != "sincos":
        state["pos_embed"] = sincos_positions(new.grid, new.embed_dim, new.num_positions - new.num_patches).to(like)
        return {"pos_embed": "computed: sine-cosine"}

    notes = []
    if kept_grid is None:
        grid = like.new_zeros(1, new.num_patches, new.embed_dim)
        notes.append("zeros, which change nothing")
    else:
        grid = fit_positions(kept_grid.float(), old.grid, new.grid, new.fewer_patches).to(kept_grid.dtype)
        if old.grid != new.grid:
            how = "sliced" if new.fewer_patches == "slice" and new.num_patches < old.num_patches else "bicubic"
            notes.append(f"{how}, grid {old.grid[0]}x{old.grid[1]} -> {new.grid[0]}x{new.grid[1]}")
    prefix = (
        [_rows(name, count, old_rows, like) for name, count in prefix_layout(new.tokens)]
        if _has_prefix_rows(new)
        else []
    )
    before = state.get("pos_embed")
    state["pos_embed"] = torch.cat([*prefix, grid.to(like.dtype)], dim=1)
    old_prefix = prefix_layout(old.tokens) if _has_prefix_rows(old) else []
    new_prefix = prefix_layout(new.tokens) if _has_prefix_rows(new) else []
    if before is not None and old_prefix != new_prefix:
        notes.append(f"{sum(n for _, n in old_prefix)} -> {sum(n for _, n in new_prefix)} prefix rows")
    return {"pos_embed": "; ".join(notes)} if notes else {}


def _rows(name: str, count: int, old_rows: dict[str, Tensor], like: Tensor) -> Tensor:
    """`count` position rows of a prefix parameter: its old ones, padded with zeros."""
    known = old_rows.get(name, like.new_zeros(1, 0, like.shape[0]))[:, :count]
    return torch.cat([known, like.new_zeros(1, count - known.shape[1], like.shape[0])], dim=1)


def _fresh_tokens(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """[1, count, D]"""
    return (torch.randn(1, count, like.shape[0], generator=generator) * TOKEN_STD).to(like)
