"""What stands beside an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import write_json, write_whole
from pipeline.models.bundle import DESCRIPTION, TOKENIZER, Bundle, Preprocess, describe
from pipeline.models.heads import head_kind
from pipeline.models.spec import ModelSpec
from pipeline.text.tokenizer import Tokenizer


def write_description(bundle: Bundle, folder: Path) -> None:
    """`model.json` beside a graph: what it expects of its input, and what its outputs are called."""
    write_json(folder / DESCRIPTION, describe(bundle.spec, bundle.preprocess, bundle.classes, bundle.provenance))


def output_names(spec: ModelSpec) -> list[str]:
    """What a graph's outputs are called: the head's own word where there is one, names of heads, or `features`."""
    answering = {}
    for name, head in spec.heads.items():
        kind = head_kind(head.kind)
        if kind.reads(head, spec.backbone) is not None and kind.refines(head) is None:
            answering[name] = kind.output
    return list(answering) if len(answering) > 1 else [*answering.values()] or ["features"]


def own_words(preprocess: Preprocess) -> dict[str, Any]:
    """What timm and open_clip have no words for, or fewer: read when such an export is imported again."""
    return {"background": list(preprocess.background), "eval": preprocess.eval.model_dump()}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, as `transformers.AutoTokenizer` reads them.

    Texts are filled up with end tokens: models read a text at the first, and no text has a token for nothing.
    """
    end = tokenizer.name(tokenizer.end)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.length,
        "bos_token": tokenizer.name(tokenizer.start),
        "eos_token": end,
        "pad_token": end,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config)
    write_whole(folder / TOKENIZER, lambda path: path.write_text(tokenizer.content, encoding="utf-8"))
