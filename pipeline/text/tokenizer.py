"""How a model reads text: a `tokenizer.json`, and the number of tokens to which each text is truncated or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

PADDING = 0  # after the end token, so a causal model does not attend to it


@dataclass(frozen=True)
class Tokenizer:
    """`content` is that of a `tokenizer.json`; `length` is the number of tokens per text, special ones included.

    Each text ends with the end token, where models read its embedding. Picklable.
    """

    content: str
    length: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [texts, length]; a longer text is truncated and keeps its end token."""
        ids = [self._library.encode(text).ids for text in texts]
        return np.array(ids, np.int32).reshape(len(ids), self.length)

    @cached_property
    def end(self) -> int:
        """The token that ends each text."""
        return int(self._plain.encode("").ids[-1])

    @cached_property
    def start(self) -> int:
        """The token that begins each text; the end token if none does."""
        return int(self._plain.encode("").ids[0])

    def name(self, token: int) -> str:
        """A token's text."""
        return str(self._plain.id_to_token(token))

    @cached_property
    def size(self) -> int:
        """Rows of an embedding with one row per token."""
        return 1 + max(self._plain.get_vocab(with_added_tokens=True).values())

    def check(self, source: str) -> None:
        """Raises `ModelError`, naming the source, if this is no tokenizer, adds no end token or leaves text no room."""
        try:
            ids, example = self._plain.encode("").ids, self._plain.encode("a")
        except Exception as error:  # the library raises nothing more specific
            raise ModelError(
                f"{source}: not a tokenizer.json ({error}); give the file of a tokenizer of the `tokenizers` library"
            ) from None
        if not ids or example.ids.index(ids[-1]) < len(example.ids) - 1:
            raise ModelError(
                f"{source}: its tokenizer does not end each text with a token that is nowhere else, at which the "
                f"text's embedding is read (it reads 'a' as {' '.join(example.tokens)}); give it a post-processor such "
                "as TemplateProcessing"
            )
        if len(ids) >= self.length:
            raise ModelError(
                f"{source}: its special tokens alone take {len(ids)} of {self.length}; allow more tokens for each text"
            )

    @property
    def _plain(self) -> Library:
        """Without truncation and padding."""
        from tokenizers import Tokenizer as Library  # imported here: half of the pipelines have no text

        library = Library.from_str(self.content)
        library.no_truncation()
        library.no_padding()
        return library

    @cached_property
    def _library(self) -> Library:
        library = self._plain
        library.enable_truncation(self.length)
        library.enable_padding(length=self.length, pad_id=PADDING)
        return library

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "length": self.length}  # without cached properties


def load_tokenizer(path: Path, length: int) -> Tokenizer:
    """Loads a tokenizer from a file. Raises `ModelError` if it cannot be read or used."""
    try:
        tokenizer = Tokenizer(path.read_text(encoding="utf-8"), length)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); name a tokenizer.json") from None
    tokenizer.check(str(path))
    return tokenizer
