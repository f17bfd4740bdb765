"""Reads any span of any parameter's state from a checkpoint, however many ranks wrote it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pipeline.checkpoints.manifest import Manifest
from pipeline.checkpoints.shard_file import WEIGHTS, raw_bytes, read_shard_header
from pipeline.checkpoints.storage import Storage
from pipeline.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of a parameter's state: raw values of `dtype` at byte `position` in a file."""

    start: int
    stop: int
    path: str
    position: int
    dtype: torch.dtype


FINISHED = ("ema", "teacher", WEIGHTS)  # keys of the finished model; the first that exists counts


class StateReader:
    """The state in a checkpoint by parameter and key (`weights`, `exp_avg`, `ema`, ...).

    Calls `progress` with the number of bytes of every read. Raises `CheckpointError` if a file is not a checkpoint's.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        manifest: Manifest,
        progress: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._progress = progress
        self.where, self.shapes = storage.url(folder), manifest.shapes
        self._storage = storage
        self._pieces: dict[str, dict[str, list[Piece]]] = defaultdict(lambda: defaultdict(list))
        self.scalars: dict[str, Tensor] = {}
        for record in manifest.files:
            self._index(f"{folder}/{record.name}", record.bytes)

    def _index(self, path: str, size: int) -> None:
        header = read_shard_header(self._storage, path, size)
        for entry in header.entries:
            flat, _, key = entry.name.partition("/")
            if not entry.shape:
                self.scalars.setdefault(key, self._read(Piece(0, 1, path, entry.start, entry.dtype)).reshape(()))
                continue
            for span in header.layout[int(flat)]:
                position = entry.start + span.offset * entry.dtype.itemsize
                piece = Piece(span.start, span.start + span.numel, path, position, entry.dtype)
                self._pieces[span.parameter][key].append(piece)

    @property
    def keys(self) -> set[str]:
        """The kinds of state stored: weights, and whatever optimiser and average add."""
        return {key for states in self._pieces.values() for key in states}

    def kinds(self, parameter: str) -> tuple[tuple[str, torch.dtype], ...]:
        """The kinds of state stored for a parameter, with their dtypes."""
        return tuple((key, pieces[0].dtype) for key, pieces in self._pieces.get(parameter, {}).items())

    def bytes_by_key(self) -> dict[str, int]:
        """Bytes of each kind of state over all parameters."""
        sizes: dict[str, int] = defaultdict(int)
        for states in self._pieces.values():
            for key, pieces in states.items():
                sizes[key] += sum((piece.stop - piece.start) * piece.dtype.itemsize for piece in pieces)
        return dict(sizes)

    def read_into(self, target: Tensor, parameter: str, start: int, key: str) -> None:
        """Fill a flat tensor with a parameter's state from element `start` on. Raises `CheckpointError` for a gap."""
        stop, filled = start + target.numel(), 0
        for piece in self._pieces.get(parameter, {}).get(key, []):
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                position = piece.position + (first - piece.start) * piece.dtype.itemsize
                wanted = Piece(first, last, piece.path, position, piece.dtype)
                self._fill(target[first - start : last - start], wanted)
                filled += last - first
        if filled != target.numel():
            raise CheckpointError(
                f"{self.where} holds {filled} of {target.numel()} values of {key} of {parameter}: its files are "
                "incomplete; resume from another checkpoint"
            )

    def whole(self, key: str) -> dict[str, Tensor]:
        """That state of every parameter that has it, in the parameter's shape, on the CPU."""
        state = {}
        for name, shape in self.shapes.items():
            if pieces := self._pieces.get(name, {}).get(key):
                flat = torch.empty(prod(shape), dtype=pieces[0].dtype)
                self.read_into(flat, name, 0, key)
                state[name] = flat.reshape(shape)
        return state

    def model_state(self) -> dict[str, Tensor]:
        """The finished model in fp32: the weights' average if kept, otherwise the teacher's, otherwise the weights."""
        return dict(self.tensors(FINISHED))

    def tensors(self, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each parameter and buffer in turn, in fp32: the first of these kinds of state that it has."""
        for name, shape in self.shapes.items():
            found = self._pieces.get(name, {})
            if key := next((key for key in keys if found.get(key)), None):
                flat = torch.empty(prod(shape), dtype=found[key][0].dtype)
                self.read_into(flat, name, 0, key)
                yield name, (flat.float() if flat.is_floating_point() else flat).reshape(shape)

    def _fill(self, target: Tensor, piece: Piece) -> None:
        """Read directly into the target if its memory can take the bytes unconverted."""
        if target.device.type == "cpu" and target.dtype == piece.dtype and target.is_contiguous():
            self._storage.read_into(piece.path, piece.position, raw_bytes(target))
            self._progress(target.nbytes)
        else:
            target.copy_(self._read(piece))

    def _read(self, piece: Piece) -> Tensor:
        values = torch.empty(piece.stop - piece.start, dtype=piece.dtype)
        self._storage.read_into(piece.path, piece.position, raw_bytes(values))
        self._progress(values.nbytes)
        return values
