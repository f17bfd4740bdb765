"""Surgery on heads: kept by name and kind, class rows matched by class name; all others are newly initialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.heads import head_kind
from pipeline.models.init import initialise_head
from pipeline.models.model_spec import ModelSpec

NO_CLASS_KEPT = "no class in common"
Names = Sequence[str] | None
Rows = list[int | None]


class HeadChanges(NamedTuple):
    """A note per changed tensor, the newly initialised tensors, and a sentence for each dropped or new head."""

    notes: dict[str, str]
    initialised: set[str]
    heads: tuple[str, ...]


def adapt_heads(
    state: dict[str, Tensor], old: ModelSpec, new: ModelSpec, from_classes: Names, to_classes: Names
) -> HeadChanges:
    """Change `state` in place from `old`'s heads to `new`'s; its backbone must already be `new`'s."""
    changes = HeadChanges({}, set(), ())
    sentences = [_drop(state, old, name, changes) for name in old.heads if not _is_kept(old, new, name)]
    rows = matching_rows(old, new, from_classes, to_classes)
    for name, spec in new.heads.items():
        fresh = _fresh_head(new, name, like=state["patch_embed.proj.weight"])
        kind = head_kind(spec.kind)
        of_classes = {f"{name}.{tensor}" for tensor in kind.class_tensors(spec)}
        if all(_fits(state.get(key), tensor, key in of_classes) for key, tensor in fresh.items()):
            _keep_rows(state, {key: fresh[key] for key in of_classes}, rows, changes)
            continue
        refined = kind.refines(spec)
        how = "is initialised" if refined is None else f"is copied from {refined!r}"
        sentences.append(f"its head {name!r} ({spec.kind}) {how}")
        if refined is None:
            changes.initialised.update(fresh)
        else:
            fresh |= {f"{name}.{mine}": state[f"{refined}.{theirs}"] for mine, theirs in kind.copies.items()}
            changes.notes.update(dict.fromkeys(fresh, f"a copy of {refined!r}"))
        state.update(fresh)
    return changes._replace(heads=tuple(sentences))


def matching_rows(old: ModelSpec, new: ModelSpec, from_classes: Names, to_classes: Names) -> Rows:
    """For each new class the old heads' row, or None."""
    if from_classes is not None and to_classes is not None:
        position = {name: row for row, name in enumerate(from_classes)}
        return [position.get(name) for name in to_classes]
    if old.num_classes == new.num_classes:
        return list(range(new.num_classes))
    return [None] * new.num_classes


def _is_kept(old: ModelSpec, new: ModelSpec, name: str) -> bool:
    return name in new.heads and new.heads[name].kind == old.heads[name].kind


def _drop(state: dict[str, Tensor], old: ModelSpec, name: str, changes: HeadChanges) -> str:
    gone = [key for key in state if key.startswith(f"{name}.")]
    for key in gone:
        del state[key]
    kind = old.heads[name].kind
    changes.notes.update(dict.fromkeys(gone, f"of the {kind} head {name!r}"))
    return f"the source's head {name!r} ({kind}) is dropped"


def _fresh_head(spec: ModelSpec, name: str, like: Tensor) -> dict[str, Tensor]:
    """State of a newly initialised head, the same every time."""
    head = spec.heads[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = head_kind(head.kind).build(head, spec.backbone)
        initialise_head(module)
    return {f"{name}.{key}": tensor.to(like) for key, tensor in module.state_dict().items()}


def _fits(before: Tensor | None, fresh: Tensor, of_classes: bool) -> bool:
    if before is None:
        return False
    return before.shape[1:] == fresh.shape[1:] if of_classes else before.shape == fresh.shape


def _keep_rows(state: dict[str, Tensor], fresh: Mapping[str, Tensor], rows: Rows, changes: HeadChanges) -> None:
    """Keep the rows of classes that stay, in tensors with one row per class."""
    matched = sum(row is not None for row in rows)
    for key, tensor in fresh.items():
        if rows == list(range(len(state[key]))):
            continue
        for target, row in enumerate(rows):
            if row is not None:
                tensor[target] = state[key][row]
        state[key] = tensor
        changes.notes[key] = f"{matched} of {len(rows)} classes kept by name" if matched else NO_CLASS_KEPT
        if not matched:
            changes.initialised.add(key)
