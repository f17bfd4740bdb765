from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.text.tokenizer import PADDING, Tokenizer
from pipeline.text.training import END, START, train_tokenizer

CAPTIONS = ["a red ankle boot", "a blue dress", "ein großer Schuh"] * 5


def trained(length: int = 8, size: int = 300) -> Tokenizer:
    return train_tokenizer(CAPTIONS, size, length)


def test_a_text_is_filled_up_and_a_longer_one_keeps_its_end() -> None:
    tokenizer = trained(5)
    empty, short, long = tokenizer.encode(["", "red", "zzzzzzzzzzzz"]).tolist()
    assert empty[1:] == [tokenizer.end, PADDING, PADDING, PADDING]
    assert short[2:] == [tokenizer.end, PADDING, PADDING]
    assert long[4] == tokenizer.end
    assert long[0] == short[0] == empty[0]
    assert max(map(max, (empty, short, long))) == tokenizer.end == tokenizer.size - 1


def test_every_text_can_be_written_and_case_does_not_count() -> None:
    tokenizer = trained(64)
    plain = tokenizer._plain
    assert plain.decode(plain.encode("日本 GROẞ ✓").ids) == " 日本 groß ✓"
    np.testing.assert_array_equal(*tokenizer.encode(["A Red BOOT", "a red boot"]))


def test_the_same_captions_give_the_same_tokenizer() -> None:
    assert trained() == trained()
    assert trained(size=258).size == 258


def test_it_travels_without_what_was_made_of_it() -> None:
    tokenizer = trained()
    tokenizer.encode(["a"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert again.__dict__.keys() == {"content", "length"}
    np.testing.assert_array_equal(again.encode(CAPTIONS), tokenizer.encode(CAPTIONS))


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^f: not a tokenizer.json \(expected value"):
        Tokenizer("words", 8).check("f")
    with pytest.raises(ModelError, match=r"^f: not a tokenizer.json \(Model missing"):
        Tokenizer("{}", 8).check("f")
    with pytest.raises(ModelError, match=r"^f: its special tokens alone take 2 of 2;"):
        trained(2).check("f")
    library = trained()._plain
    from tokenizers import processors

    library.post_processor = processors.ByteLevel()
    with pytest.raises(ModelError, match=r"^f: its tokenizer does not end each text .* \(it reads 'a' as Ġa\);"):
        Tokenizer(library.to_str(), 8).check("f")
    trained(3).check("f")


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        (f"{START} $A", True),  # as Llama's: all texts would be read at the start token, before their words
        (f"{END} $A {END}", True),
        (f"$A {END}", False),
    ],
)
def test_texts_are_read_at_a_token_that_only_ends_them(form: str, fault: bool) -> None:
    from tokenizers import processors

    library = trained()._plain
    tokens = [(token, library.token_to_id(token)) for token in (START, END) if token in form]
    library.post_processor = processors.TemplateProcessing(single=form, special_tokens=tokens)
    tokenizer = Tokenizer(library.to_str(), 8)
    if fault:
        with pytest.raises(ModelError, match=r"^f: its tokenizer does not end each text with a token that is nowhere"):
            tokenizer.check("f")
    else:
        tokenizer.check("f")
