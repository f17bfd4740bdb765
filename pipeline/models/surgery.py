"""The one way to change a model's shape: full state dicts in, full state dicts and a report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.model_spec import ModelSpec
from pipeline.models.patch_embed import change_channels, resize_kernel
from pipeline.models.spec import FIXED_FIELDS, ViTSpec
from pipeline.models.state import check_state, expected_shapes
from pipeline.models.surgery_heads import adapt_heads
from pipeline.models.surgery_probe import probe_outputs
from pipeline.models.surgery_report import Action, Change, SurgeryReport
from pipeline.models.surgery_tokens import adapt_tokens

PATCH_KERNEL = "patch_embed.proj.weight"


def adapt(
    state: Mapping[str, Tensor],
    from_spec: ModelSpec,
    to_spec: ModelSpec,
    *,
    from_classes: Sequence[str] | None = None,
    to_classes: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Converts weights of `from_spec` to weights of `to_spec` and reports the changes; leaves the input unchanged.

    Positions are resized by grid, the patch kernel by pseudo-inverse, channels so that grey images give the same
    tokens; tokens are added, dropped, or folded into their positions; layer scale is folded into its branch. Heads of
    the same name and kind stay: class rows are matched by class name, or all kept if the number of classes agrees and
    names are not known on both sides. Other heads are dropped or newly initialised. Deterministic. Raises `ModelError`
    if the state does not fit its spec or the architectures differ.
    """
    check_state(state, from_spec, "the state to adapt")
    old, wanted = from_spec.backbone, to_spec.backbone
    _check_same_architecture(old, wanted)
    _check_classes(from_spec, from_classes, "from_classes")
    _check_classes(to_spec, to_classes, "to_classes")

    generator = torch.Generator().manual_seed(0)
    new = dict(state)
    notes = _adapt_patch_kernel(new, old, wanted)
    notes |= adapt_tokens(new, old, wanted, generator)
    notes |= _adapt_layer_scale(new, old, wanted)
    heads = adapt_heads(new, from_spec, to_spec, from_classes, to_classes)

    new = {name: new[name].detach().clone() for name in expected_shapes(to_spec)}
    check_state(new, to_spec, "the adapted state")
    changes = tuple(_changes(state, new, notes | heads.notes, heads.initialised))
    same_heads = from_spec.heads == to_spec.heads and _same_names(from_classes, to_classes)
    return new, SurgeryReport(changes, probe_outputs(dict(state), from_spec, new, to_spec, same_heads), heads.heads)


def _adapt_patch_kernel(state: dict[str, Tensor], old: ViTSpec, new: ViTSpec) -> dict[str, str]:
    state[PATCH_KERNEL] = resize_kernel(change_channels(state[PATCH_KERNEL], new.channels), new.patch)
    notes = []
    if old.channels != new.channels:
        notes.append(f"channels {old.channels} -> {new.channels}")
    if old.patch != new.patch:
        notes.append(f"pseudo-inverse resize, patch {_by(old.patch)} -> {_by(new.patch)}")
    return {PATCH_KERNEL: "; ".join(notes)} if notes else {}


def _adapt_layer_scale(state: dict[str, Tensor], old: ViTSpec, new: ViTSpec) -> dict[str, str]:
    """Dropping layer scale multiplies it into the branch's last matrix; adding it starts at 1: both are exact."""
    if (old.layer_scale is None) == (new.layer_scale is None):
        return {}
    notes = {}
    for layer in range(old.depth):
        prefix = f"transformer.layers.{layer}."
        for scale, last in (("ls1.gamma", "self_attn.out_proj"), ("ls2.gamma", "linear2")):
            if new.layer_scale is not None:
                state[prefix + scale] = torch.ones_like(state[f"{prefix}{last}.bias"])
                notes[prefix + scale] = "ones, which change nothing"
                continue
            gamma = state.pop(prefix + scale)
            state[f"{prefix}{last}.weight"] = state[f"{prefix}{last}.weight"] * gamma[:, None]
            state[f"{prefix}{last}.bias"] = state[f"{prefix}{last}.bias"] * gamma
            notes[prefix + scale] = f"folded into {last}"
            notes[f"{prefix}{last}.weight"] = notes[f"{prefix}{last}.bias"] = "layer scale folded in"
    return notes


def _changes(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], notes: Mapping[str, str], initialised: Set[str]
) -> list[Change]:
    changes: list[Change] = []
    for name, tensor in new.items():
        note = notes.get(name, "")
        before = tuple(old[name].shape) if name in old else None
        action: Action = "resized" if note else "copied"
        if before is None or name in initialised:
            action = "initialised"
        changes.append(Change(name, action, before, tuple(tensor.shape), note))
    gone = [name for name in old if name not in new]
    return changes + [Change(name, "dropped", tuple(old[name].shape), None, notes.get(name, "")) for name in gone]


def _check_same_architecture(old: ViTSpec, new: ViTSpec) -> None:
    for name in FIXED_FIELDS:
        if getattr(old, name) != getattr(new, name):
            raise ModelError(
                f"model.{name}: found {getattr(new, name)}, but the weights to start from have {getattr(old, name)}; "
                f"surgery does not change it, so set it to {getattr(old, name)} or start from other weights"
            )


def _check_classes(spec: ModelSpec, classes: Sequence[str] | None, name: str) -> None:
    if classes is not None and len(classes) != spec.num_classes:
        raise ModelError(f"{name}: found {len(classes)} names, but the head has {spec.num_classes} classes")


def _same_names(from_classes: Sequence[str] | None, to_classes: Sequence[str] | None) -> bool:
    return from_classes is None or to_classes is None or list(from_classes) == list(to_classes)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
