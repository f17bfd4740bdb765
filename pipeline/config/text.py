"""How a stage's texts become tokens."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.config.paths import PathText
from pipeline.config.section import Positive, Section

CAPTIONS = 200_000


class TokenizerConfig(Section):
    """A `tokenizer.json`, or byte-level BPE of a size trained on the run's captions; a plain string is the file."""

    file: PathText | None = Field(
        default=None,
        description="a tokenizer.json of the `tokenizers` library; default: that of the model it starts from, else one "
        "trained on the captions",
    )
    size: Annotated[int, Field(ge=258)] | None = Field(
        default=None,
        description="number of tokens; 256 of them are the bytes; default: as many as the model it starts from, else "
        "8192",
    )
    captions: Positive = Field(
        default=CAPTIONS, description="maximum number of samples whose captions it is trained on"
    )

    @model_validator(mode="before")
    @classmethod
    def file_alone(cls, raw: Any) -> Any:
        return {"file": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def file_or_trained(self) -> Self:
        if self.file is not None and (self.size is not None or self.captions != CAPTIONS):
            raise ValueError("size: the file already has a size; leave out size and captions, or the file")
        return self
