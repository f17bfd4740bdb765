"""How a model reads text: a `tokenizer.json`, and the number of tokens that each text is cut or filled up to."""

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

PADDING = 0  # behind the end token, where a causal model does not look


@dataclass(frozen=True)
class Tokenizer:
    """`content` is that of a `tokenizer.json`, `length` tokens a text has, its first and last special ones included.

    Each text ends with the end token, at which models read it. Picklable.
    """

    content: str
    length: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [texts, length]; of a longer text its beginning, and the end token."""
        ids = [self._library.encode(text).ids for text in texts]
        return np.array(ids, np.int32).reshape(len(ids), self.length)

    @cached_property
    def end(self) -> int:
        """The token that ends each text."""
        return int(self._plain.encode("").ids[-1])

    @cached_property
    def start(self) -> int:
        """The token that begins each text; the end token where none does."""
        return int(self._plain.encode("").ids[0])

    def name(self, token: int) -> str:
        """A token's text."""
        return str(self._plain.id_to_token(token))

    @cached_property
    def size(self) -> int:
        """Rows of an embedding that has one for each token."""
        return 1 + max(self._plain.get_vocab(with_added_tokens=True).values())

    def check(self, source: str) -> None:
        """Raise `ModelError`, naming the source, where this is no tokenizer, or none that ends texts."""
        try:
            ids = self._plain.encode("").ids
        except Exception as error:  # the library raises nothing more exact
            raise ModelError(
                f"{source}: is no tokenizer.json ({error}); give the file of a tokenizer of the `tokenizers` library"
            ) from None
        if not ids:
            raise ModelError(
                f"{source}: its tokenizer puts no end token behind a text, and the embedding of a text is read there; "
                "give it a post-processor such as TemplateProcessing"
            )
        if len(ids) >= self.length:
            raise ModelError(
                f"{source}: its special tokens alone take {len(ids)} of {self.length}; allow more tokens for each text"
            )

    @property
    def _plain(self) -> Library:
        """Without a fixed length."""
        from tokenizers import Tokenizer as Library  # half of the pipelines have no texts

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
        return {"content": self.content, "length": self.length}  # without what was made of them


def load_tokenizer(path: Path, length: int) -> Tokenizer:
    """The tokenizer of a file. Raises `ModelError` where it cannot be read or used."""
    try:
        tokenizer = Tokenizer(path.read_text(encoding="utf-8"), length)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); name a tokenizer.json") from None
    tokenizer.check(str(path))
    return tokenizer
