"""The tokenizer of a stage that reads texts: given, inherited or trained on its captions, and kept in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config.task import TaskConfig
from pipeline.config.text import TokenizerConfig
from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.models.bundle import TOKENIZER, Preprocess
from pipeline.models.heads.text_tower.shape import TEXT, text_length
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.shards.scan import scan_shard
from pipeline.stream.source import Source
from pipeline.targets.base import BadLabel
from pipeline.targets.text import Text
from pipeline.text.tokenizer import Tokenizer, load_tokenizer
from pipeline.text.training import train_tokenizer


def stage_tokenizer(
    task: TaskConfig, spec: ModelSpec, train: Sequence[Source], parent: Preprocess | None, folder: Path, where: str
) -> Tokenizer | None:
    """The tokenizer of a stage's model; None if it reads no texts. `parent` belongs to the model that it starts from.

    Made once: a resumed stage finds it in its folder. Raises ConfigError, with the dotted path `where`, if there are no
    captions to train one on.
    """
    length, config = text_length(spec.heads), task.tokenizing()
    if length is None or config is None:
        return None
    kept = folder / TOKENIZER
    if not kept.is_file():
        made = _made(config, spec.heads[TEXT], train, parent, where)
        write_whole(kept, lambda draft: draft.write_text(made.content, encoding="utf-8"))
    return load_tokenizer(kept, length)


def _made(
    config: TokenizerConfig, tower: HeadSpec, train: Sequence[Source], parent: Preprocess | None, where: str
) -> Tokenizer:
    length = tower.options["length"]
    if config.file is not None:
        return load_tokenizer(Path(config.file), length)
    if parent is not None and parent.tokenizer is not None:
        return Tokenizer(parent.tokenizer.content, length)
    captions = list(captions_of(train, config.captions))
    if not captions:
        raise ConfigError(
            f"{where}.data: found no good caption to train a tokenizer on; `minivit shards verify` shows why"
        )
    return train_tokenizer(captions, tower.options["tokens"], length)


def captions_of(sources: Sequence[Source], most: int) -> Iterator[str]:
    """The captions of at most `most` samples, spread over all shards; from tars, reads only headers and captions."""
    shards = [(source, shard) for source in sources for shard in source.index.shards]
    order = np.random.default_rng(0).permutation(len(shards))  # a reproducible choice
    for number in order.tolist():
        source, shard = shards[number]
        target = source.targets["text"]
        assert isinstance(target, Text)
        for sample in scan_shard(shard.url, source.keys, [target], headers_only=True).samples[:most]:
            try:
                yield from target.decode(sample.content, None)
            except BadLabel:
                continue
            most -= 1
        if most <= 0:
            return
