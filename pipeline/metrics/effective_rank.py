"""How many directions embeddings use: the effective rank of Roy & Vetterli (2007), which reveals a collapse.

It is the exponential of the entropy of the normalised singular values: 1 if all embeddings are multiples of one, D if
all D directions are used equally. It correlates with a backbone's downstream performance (RankMe, Garrido et al. 2023).
Embeddings are not centred, so that a constant embedding has rank 1.

Legend: N samples, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.metrics.files import append_rows
from pipeline.metrics.schema import Measure

if TYPE_CHECKING:
    from torch import Tensor

EFFECTIVE_RANK = Measure("effective_rank", "Effective rank", "higher")
SPECTRUM = "spectrum.csv"  # a row per model and direction


def singular_values(moments: Tensor) -> Tensor:
    """[D], largest first, of embeddings Z [N, D], given their `moments` Z^T Z [D, D]."""
    import torch

    return torch.linalg.eigvalsh(moments.double()).clamp(min=0).sqrt().flip(0)


def effective_rank(moments: Tensor) -> Tensor:
    """float64 scalar from 1 to D for embeddings Z, given their `moments` Z^T Z [D, D]; 0 if all are zero."""
    values = singular_values(moments)
    shares = values / values.sum().clamp(min=1e-300)
    return (-(shares * shares.clamp(min=1e-300).log()).sum()).exp() * (values[0] > 0)


class Spectrum:
    """A `Collector` of embeddings [B, D]: their effective rank, and their singular values as a file."""

    def __init__(self, dim: int) -> None:
        import torch

        self.moments = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, predicted: Tensor, batch: Any) -> None:
        """Add the embeddings of a batch's good samples."""
        embeddings = predicted.double() * batch.weights.double().sqrt()[:, None]
        self.moments = self.moments.to(embeddings.device) + embeddings.T @ embeddings

    def state(self) -> Tensor:
        return self.moments.cpu()

    def merge(self, state: Tensor) -> None:
        self.moments = self.moments.cpu() + state

    def measures(self) -> dict[str, float]:
        return {EFFECTIVE_RANK.name: effective_rank(self.moments).item()}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write the singular values, largest first, as fractions of their sum."""
        values = singular_values(self.moments)
        shares = (values / values.sum().clamp(min=1e-300)).tolist()
        rows = [(model, number, f"{share:.4f}") for number, share in enumerate(shares, start=1)]
        append_rows(folder / SPECTRUM, ("model", "direction", "share"), rows)
