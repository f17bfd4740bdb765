"""Rewrites a checkpoint with another number of files. No run needs this to resume; archives and slow stores may."""

from __future__ import annotations

import errno
import secrets
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from pipeline.checkpoints.manifest import FileRecord, Manifest, commit_manifest, verify_checkpoint
from pipeline.checkpoints.retention import sweep
from pipeline.checkpoints.shard_file import SUFFIX, Span, write_shard
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import Storage, storage_error

THREADS = 4  # files in flight; each is held in memory in full


def reshard(storage: Storage, folder: str, files: int) -> Manifest:
    """Rewrite a checkpoint as `files` files of nearly equal size; removes the old ones once the new are committed.

    Raises `CheckpointError` if it fails verification, or the storage has no room for a second copy.
    """
    with storage.reading(folder):
        manifest = verify_checkpoint(storage, folder)
        reader = StateReader(storage, folder, manifest)
        try:
            free = storage.free_bytes()
            if free is not None and free < manifest.bytes:
                raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {manifest.bytes:,} are needed")
            token = secrets.token_hex(4)

            def write(part: int) -> FileRecord:
                path = f"{folder}/rank-{part:05d}-of-{files:05d}.{token}{SUFFIX}"
                return write_shard(storage, path, *_part(reader, part, files))

            with ThreadPoolExecutor(min(files, THREADS)) as pool:
                records = list(pool.map(write, range(files)))
            renewed = replace(manifest, files=records, world_size=files)
            commit_manifest(storage, folder, renewed)
        except OSError as error:
            raise (storage_error(storage, error) or error) from None
    sweep(storage, folder, renewed)
    return renewed


def _part(reader: StateReader, part: int, parts: int) -> tuple[list[list[Span]], dict[str, Tensor]]:
    """Layout and tensors of one of `parts` equal shares: one flat per set of parameters with the same state."""
    layout: list[list[Span]] = []
    tensors: dict[str, Tensor] = {}
    for kinds, names in _alike(reader).items():
        spans = list(_share(reader, names, part, parts))
        numel = sum(span.numel for span in spans)
        for key, dtype in kinds:
            flat = torch.empty(numel, dtype=dtype)
            for span in spans:
                reader.read_into(flat[span.offset : span.offset + span.numel], span.parameter, span.start, key)
            tensors[f"{len(layout)}/{key}"] = flat
        if len(layout) == 0:
            tensors |= {f"0/{key}": value for key, value in reader.scalars.items()}
        layout.append(spans)
    return layout, tensors


def _alike(reader: StateReader) -> dict[tuple[tuple[str, torch.dtype], ...], list[str]]:
    """Parameters grouped by the kinds of state stored for them and their dtypes."""
    groups: dict[tuple[tuple[str, torch.dtype], ...], list[str]] = defaultdict(list)
    for name in reader.shapes:
        groups[reader.kinds(name)].append(name)
    return groups


def _share(reader: StateReader, names: list[str], part: int, parts: int) -> Iterator[Span]:
    """The spans of the parameters, laid end to end, that fall into one equal share."""
    total = sum(prod(reader.shapes[name]) for name in names)
    first, last = total * part // parts, total * (part + 1) // parts
    position = 0
    for name in names:
        numel = prod(reader.shapes[name])
        start, stop = max(first - position, 0), min(last - position, numel)
        if start < stop:
            yield Span(name, start, position + start - first, stop - start)
        position += numel
