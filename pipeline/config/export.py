"""How an export stage writes models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.section import Section


class GraphConfig(Section):
    """Of formats that hold a graph of operators."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(
        default=18, description="version of ONNX's operators; runtimes run graphs of their own version and older ones"
    )
    any_size: bool = Field(
        default=True, description="take images of any size that is a multiple of the patch, where the model does"
    )
