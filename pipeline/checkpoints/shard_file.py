"""One rank's file of a checkpoint: flat tensors, and which span of which parameter each part holds.

The file is safetensors (https://huggingface.co/docs/safetensors): the length of a JSON header in 8 bytes, the header,
the raw tensors. It contains no code. Its `__metadata__` holds the layout, so that any number of ranks under any ZeRO
stage can find any span of a parameter.

A tensor `N/KEY` is the state KEY (weights, exp_avg, ...) of flat N: one-dimensional as in the layout, or a scalar for
the whole flat (an optimiser's step).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from math import prod

import torch
from torch import Tensor

from pipeline.checkpoints.manifest import FileRecord
from pipeline.checkpoints.storage import Storage
from pipeline.errors import CheckpointError

SUFFIX = ".safetensors"
WEIGHTS = "weights"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}
DTYPES |= {"I32": torch.int32, "I16": torch.int16, "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 100 << 20  # the format's limit
CHUNK = 16 << 20  # bytes hashed and written per chunk


@dataclass(frozen=True)
class Span:
    """Elements `start` to `start + numel` of a parameter (row-major), stored at `offset` of a flat tensor."""

    parameter: str
    start: int
    offset: int
    numel: int


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: where its bytes are and how to read them."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ShardHeader:
    """The content of a file."""

    entries: list[Entry]
    layout: list[list[Span]]  # of each flat


def write_shard(
    storage: Storage,
    path: str,
    layout: Sequence[Sequence[Span]],
    tensors: Mapping[str, Tensor],
    progress: Callable[[int], None] = lambda size: None,
) -> FileRecord:
    """Write CPU tensors to one file and hash them on the way; durable on return. Raises the storage's errors.

    Calls `progress` with the number of bytes of every chunk written.
    """
    header = _header(layout, tensors)
    digest, size = hashlib.sha256(), 0
    with storage.create(path) as file:
        for chunk in _chunks(header, tensors):
            digest.update(chunk)
            file.write(chunk)
            progress(len(chunk))
            size += len(chunk)
    return FileRecord(path.rsplit("/", 1)[-1], size, digest.hexdigest())


def _header(layout: Sequence[Sequence[Span]], tensors: Mapping[str, Tensor]) -> bytes:
    spans = [[astuple(span) for span in flat] for flat in layout]
    header: dict[str, object] = {"__metadata__": {"format": "pt", "layout": json.dumps(spans, separators=(",", ":"))}}
    position = 0
    for name, tensor in tensors.items():
        stop = position + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return LENGTH.pack(len(text)) + text


def _chunks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    for tensor in tensors.values():
        data = raw_bytes(tensor.reshape(-1))
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a flat, contiguous CPU tensor, to read or write."""
    return tensor.view(torch.uint8).numpy().data


def read_shard_header(storage: Storage, path: str, size: int) -> ShardHeader:
    """The header of a file of `size` bytes. Raises CheckpointError if it is not one of ours."""
    try:
        length = LENGTH.unpack(_read(storage, path, 0, LENGTH.size))[0]
        if length > min(MAX_HEADER_BYTES, size):
            raise ValueError(f"a header of {length} bytes")
        raw = json.loads(_read(storage, path, LENGTH.size, length))
        spans = json.loads(raw.pop("__metadata__")["layout"])
        layout = [[Span(*span) for span in flat] for flat in spans]
        entries = [_entry(name, described, LENGTH.size + length) for name, described in raw.items()]
    except (EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{storage.url(path)} is not a checkpoint file ({error!r})") from None
    if any(entry.stop > size for entry in entries):
        raise CheckpointError(f"{storage.url(path)} is truncated at {size} bytes")
    return ShardHeader(entries, layout)


def _read(storage: Storage, path: str, start: int, size: int) -> bytearray:
    data = bytearray(size)
    storage.read_into(path, start, memoryview(data))
    return data


def _entry(name: str, described: dict, data: int) -> Entry:
    dtype, shape = DTYPES[described["dtype"]], tuple(described["shape"])
    start, stop = described["data_offsets"]
    if stop - start != prod(shape) * dtype.itemsize or start < 0:
        raise ValueError(f"{name} has {stop - start} bytes for shape {list(shape)}")
    return Entry(name, dtype, shape, data + start, data + stop)
