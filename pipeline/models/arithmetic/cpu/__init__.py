"""The arithmetic on a CPU: `rules` choose among torch's operators, oneDNN's products and computation in fp32."""

from pipeline.models.arithmetic.cpu.attention import attention
from pipeline.models.arithmetic.cpu.draws import draws_reach
from pipeline.models.arithmetic.cpu.linear import linear

__all__ = ["attention", "draws_reach", "linear"]
