"""Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019), trained on the captions of a run."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.text.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"  # as CLIP names them
SMALLEST = 256 + 2  # every byte, and these two


def train_tokenizer(captions: Iterable[str], size: int, length: int) -> Tokenizer:
    """Trains a tokenizer of at most `size` tokens, fewer if no pairs are left to merge; deterministic.

    Case is ignored, and every text can be encoded, as all bytes are tokens. The end token has the highest id, by which
    open_clip finds it.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    library = Library(models.BPE())
    library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator(captions, trainer)
    library.add_special_tokens([START, END])  # after training, so that they are the last
    library.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, library.token_to_id(token)) for token in (START, END)],
    )
    return Tokenizer(library.to_str(), length)
