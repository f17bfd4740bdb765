"""Both towers of a CLIP model, for `open_clip.create_model("local-dir:FOLDER")` and `open_clip.get_tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.export.files import inexpressible_settings, write_tokenizer
from pipeline.export.to_clip import preprocess_config, vision_config
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import Bundle
from pipeline.models.clip_towers import to_clip_towers
from pipeline.models.expressible import text_head
from pipeline.models.heads.text_tower.shape import TEMPERATURE
from pipeline.models.weights_file import save_tensors

LIBRARY = "open_clip"
USE = """```python
import open_clip

model, _, transform = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
```"""


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer; returns the folder.

    Raises `ModelError` if open_clip has no such model.
    """
    spec, tokenizer = bundle.spec.backbone, bundle.preprocess.tokenizer
    text = text_head(bundle.spec, "open_clip")
    assert tokenizer is not None
    tensors = to_clip_towers(bundle.state, bundle.spec, "openai")
    norm = {"norm_kwargs": {"eps": spec.eps}}
    highest = tokenizer.end == tokenizer.size - 1
    temperature = bundle.spec.heads[TEMPERATURE].options
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": text.outputs,
            "quick_gelu": spec.activation == "quick_gelu",
            **({"init_logit_bias": temperature["bias"]} if "bias" in temperature else {}),
            "vision_cfg": vision_config(spec) | norm,
            "text_cfg": {
                "context_length": text.options["length"],
                "vocab_size": text.options["tokens"],
                "width": text.options["dim"],
                "heads": text.options["num_heads"],
                "layers": text.options["depth"],
                "hf_tokenizer_name": "tokenizer.json",  # any name makes it look for that file next to this one
                **({} if highest else {"pool_type": "eos", "eos_id": tokenizer.end}),
                **norm,
            },
        },
        "preprocess_cfg": preprocess_config(bundle.preprocess),
    }
    write_json(folder / "open_clip_config.json", config | inexpressible_settings(bundle.preprocess))
    write_tokenizer(tokenizer, folder)
    write_whole(folder / "open_clip_model.safetensors", lambda path: save_tensors(path, tensors))
    return folder


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express: nothing."""
    return []
