"""Image-to-text and text-to-image retrieval: the fraction of queries with an answer among the k nearest (recall@k).

Equal captions count as one: finding one of them finds all. Ties count against a model, so that one which embeds
everything identically finds nothing.

Legend: N images, M captions, U distinct captions, E width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.metrics.bootstrap import Interval, ResampledSums
from pipeline.metrics.files import append_rows
from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from torch import Tensor

AT = 1, 5, 10
TO_TEXT, TO_IMAGE = "image_to_text", "text_to_image"
RETRIEVAL = Schema(
    (
        LOSS,
        *(Measure(f"{TO_TEXT}_r{k}", f"Image to text recall@{k}", "higher", share=True) for k in AT),
        *(Measure(f"{TO_IMAGE}_r{k}", f"Text to image recall@{k}", "higher", share=True) for k in AT),
    ),
    selects=f"{TO_TEXT}_r1",
)
FILE = "retrieval.csv"
ROWS, COLUMNS = 1 << 10, 1 << 15  # queries and answers compared at once: 128 MB of similarities
TILE = 64  # a multiple of the rows and columns that BLAS computes at once


class Pairs(NamedTuple):
    """Images with their captions, as embeddings of length 1."""

    slots: np.ndarray  # int64 [N], of the images
    images: np.ndarray  # fp32 [N, E]
    owners: np.ndarray  # int64 [M], the slot of each caption's image
    texts: np.ndarray  # fp32 [M, E]
    numbers: np.ndarray  # int64 [M], the same for equal captions

    def ordered(self) -> Pairs:
        """The pairs in data order."""
        images, texts = np.argsort(self.slots), np.argsort(self.owners, kind="stable")
        return Pairs(
            self.slots[images], self.images[images], self.owners[texts], self.texts[texts], self.numbers[texts]
        )


class EmbeddedBatch(NamedTuple):
    """A batch's images [B, E], all their captions [m, E], and the loss's inputs that belong to no sample."""

    images: Tensor
    texts: Tensor
    shared: Mapping[str, Tensor]


class Retrieval:
    """A `Collector` of all pairs of an evaluation; `loss` computes the task's loss over them as one batch."""

    def __init__(self, loss: Callable[[Pairs, Mapping[str, Tensor]], float]) -> None:
        self._loss, self._parts = loss, list[Pairs]()
        self._shared: Mapping[str, Tensor] = {}
        self._found: Ranks | None = None  # once measured

    def add(self, predicted: EmbeddedBatch, batch: Any) -> None:
        self._shared = predicted.shared
        images, texts = (values.float().cpu().numpy() for values in predicted[:2])
        offsets = batch.targets["all_tokens.offsets"].numpy()
        good, slots = batch.weights.cpu().numpy() > 0, batch.slots.cpu().numpy()
        kept = np.repeat(good, np.diff(offsets))
        owners = np.repeat(slots, np.diff(offsets))
        numbers = batch.targets["all_captions"].cpu().numpy()
        self._parts.append(Pairs(slots[good], images[good], owners[kept], texts[kept], numbers[kept]))

    def state(self) -> Pairs:
        self._parts = [Pairs(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))]
        return self._parts[0]

    def merge(self, state: Pairs) -> None:
        self._parts.append(state)

    def measures(self) -> dict[str, float]:
        pairs = self.state().ordered()
        self._found = found_ranks(pairs)
        return {"loss": self._loss(pairs, self._shared), **self._found.recalls()}

    def intervals(self) -> dict[str, Interval]:
        assert self._found is not None
        return self._found.intervals()

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write a row for each direction and k."""
        assert self._found is not None
        found = self._found.recalls()
        rows = [(model, way, k, f"{found[f'{way}_r{k}']:.6f}") for way in (TO_TEXT, TO_IMAGE) for k in AT]
        append_rows(folder / FILE, ("model", "query", "k", "recall"), rows)


class Ranks(NamedTuple):
    """The ranks of the right answers, as in `ranks`, to all images and captions as queries."""

    slots: np.ndarray  # int64 [N], of the images
    image: np.ndarray  # int64 [M], the row of each caption's image
    of_images: np.ndarray  # int64 [N]
    of_texts: np.ndarray  # int64 [M]

    def recalls(self) -> dict[str, float]:
        """recall@k in both directions."""
        return {
            f"{way}_r{k}": float((found < k).mean())
            for way, found in ((TO_TEXT, self.of_images), (TO_IMAGE, self.of_texts))
            for k in AT
        }

    def intervals(self) -> dict[str, Interval]:
        """The bootstrap intervals of `recalls`; an image is drawn with its captions, the answers stay the same."""
        order = np.argsort(self.image, kind="stable")
        texts = np.split(self.of_texts[order], np.cumsum(np.bincount(self.image, minlength=len(self.slots)))[:-1])
        sums = ResampledSums(2 * (1 + len(AT)))
        for slot, rank, of_texts in zip(self.slots.tolist(), self.of_images, texts, strict=True):
            found = *(rank < k for k in AT), len(of_texts), *((of_texts < k).sum() for k in AT)
            sums.add(slot, np.array([1, *found]))
        return sums.intervals(_shares)


def _shares(sums: np.ndarray) -> dict[str, float]:
    """Recalls from the sums of a resample: for each direction, the number of queries and the hits at each k."""
    ways = (TO_TEXT, sums[: 1 + len(AT)]), (TO_IMAGE, sums[1 + len(AT) :])
    return {
        f"{way}_r{k}": hits / part[0] for way, part in ways if part[0] for k, hits in zip(AT, part[1:], strict=True)
    }


def found_ranks(pairs: Pairs) -> Ranks:
    """How well each image finds its captions, and each caption its images."""
    _, first, same = np.unique(pairs.numbers, return_index=True, return_inverse=True)  # [U], [M]
    image = np.searchsorted(pairs.slots, pairs.owners)
    texts = pairs.texts[first]
    owns = np.stack([image, same], axis=1)
    of_texts = ranks(texts, pairs.images, owns[:, ::-1])[same]
    return Ranks(pairs.slots, image, ranks(pairs.images, texts, owns), of_texts)


def ranks(queries: np.ndarray, answers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each query [Q, E], how many wrong answers [A, E] are at least as near as the nearest right one: int64 [Q].

    `right` holds pairs (query, answer), int64 [n, 2]. Memory does not grow with Q or A: similarities are computed in
    blocks, and twice if there are several blocks of answers. Equal answers are equally near, in whichever block.
    """
    found = np.zeros(len(queries), np.int64)
    right = np.unique(right, axis=0)
    columns = min(COLUMNS, len(answers) + -len(answers) % TILE)
    blocks = range(0, len(answers), columns)
    for start in range(0, len(queries), ROWS):
        some = queries[start : start + ROWS]
        row, column = (right[slice(*np.searchsorted(right[:, 0], (start, start + ROWS)))] - (start, 0)).T
        near = lru_cache(1)(partial(_near, some, answers, columns))
        of_right = np.full(len(row), -np.inf, queries.dtype)
        for first in blocks:
            here = (first <= column) & (column < first + columns)
            of_right[here] = near(first)[row[here], column[here] - first]
        best = np.full(len(some), -np.inf, queries.dtype)
        np.maximum.at(best, row, of_right)
        for first in blocks:
            found[start : start + ROWS] += (near(first) >= best[:, None]).sum(axis=1)
        np.subtract.at(found, row + start, of_right >= best[row])
    return found


def _near(queries: np.ndarray, answers: np.ndarray, columns: int, first: int) -> np.ndarray:
    """Similarities of `columns` answers from `first`, or as many as there are.

    The product is of whole tiles and the same shape in every block, because at the edges of matrices BLAS adds in
    another order: equal answers would differ by rounding.
    """
    some = answers[first : first + columns]
    near: np.ndarray = _padded(queries, len(queries) + -len(queries) % TILE) @ _padded(some, columns).T
    return near[: len(queries), : len(some)]


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) == count else np.pad(rows, ((0, count - len(rows)), (0, 0)))
