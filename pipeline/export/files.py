"""Files that accompany an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import write_json, write_whole
from pipeline.models.bundle import DESCRIPTION, TOKENIZER, Bundle, Preprocess, describe
from pipeline.text.tokenizer import Tokenizer


def write_description(bundle: Bundle, folder: Path, graphs: Mapping[str, Any]) -> None:
    """Write `model.json` next to graphs: the model they come from, and each graph's inputs and output names."""
    described = describe(bundle.spec, bundle.preprocess, bundle.classes, bundle.provenance)
    settings = {"task_settings": bundle.task_settings} if bundle.task_settings else {}
    write_json(folder / DESCRIPTION, described | settings | {"graphs": dict(graphs)})


def inexpressible_settings(preprocess: Preprocess) -> dict[str, Any]:
    """Settings that timm and open_clip cannot express, or only partly; read when such an export is imported again."""
    return {"background": list(preprocess.background), "eval": preprocess.eval.model_dump()}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, as `transformers.AutoTokenizer` reads them.

    Texts are padded with end tokens: models read a text at the first one, and there is no padding token.
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
