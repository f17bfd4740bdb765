"""Both towers of a CLIP model, for `transformers.CLIPModel.from_pretrained(FOLDER)` and `AutoTokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.export.files import write_tokenizer
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import Bundle
from pipeline.models.clip_towers import to_clip_towers
from pipeline.models.expressible import text_head
from pipeline.models.model_spec import ModelSpec
from pipeline.models.resizing import RESAMPLE
from pipeline.models.weights_file import save_tensors
from pipeline.text.tokenizer import Tokenizer

LIBRARY = "transformers"
USE = """```python
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

model = CLIPModel.from_pretrained("{folder}")
processor, tokenizer = AutoImageProcessor.from_pretrained("{folder}"), AutoTokenizer.from_pretrained("{folder}")
```"""
OTHER_POOLING = 2  # with this end token `transformers` pools texts elsewhere, as its first version did


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` and the tokenizer; returns the folder.

    Raises `ModelError` if `transformers` has no such model.
    """
    tokenizer = bundle.preprocess.tokenizer
    assert tokenizer is not None
    if tokenizer.end == OTHER_POOLING:
        raise ModelError(f"tokenizer: found the end token {OTHER_POOLING}, at which a CLIPModel does not pool texts")
    tensors = to_clip_towers(bundle.state, bundle.spec, "hugging_face")
    write_json(folder / "config.json", model_config(bundle.spec, tokenizer))
    write_json(folder / "preprocessor_config.json", clip_preprocessor_config(bundle))
    write_tokenizer(tokenizer, folder)
    write_whole(folder / "model.safetensors", lambda path: save_tensors(path, tensors))
    return folder


def model_config(model: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    spec, text = model.backbone, text_head(model, "CLIPModel")
    shared = {"hidden_act": spec.activation, "layer_norm_eps": spec.eps, "attention_dropout": 0.0}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.outputs,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            **shared,
            "vocab_size": text.options["tokens"],
            "hidden_size": text.options["dim"],
            "intermediate_size": 4 * text.options["dim"],
            "num_hidden_layers": text.options["depth"],
            "num_attention_heads": text.options["num_heads"],
            "max_position_embeddings": text.options["length"],
            "projection_dim": text.outputs,
            "bos_token_id": tokenizer.start,
            "eos_token_id": tokenizer.end,
            "pad_token_id": tokenizer.end,
        },
        "vision_config": {
            **shared,
            "hidden_size": spec.embed_dim,
            "intermediate_size": spec.mlp_dim,
            "num_hidden_layers": spec.depth,
            "num_attention_heads": spec.num_heads,
            "num_channels": spec.channels,
            "image_size": spec.image_size[0],
            "patch_size": spec.patch[0],
            "projection_dim": text.outputs,
        },
    }


def clip_preprocessor_config(bundle: Bundle) -> dict[str, Any]:
    """How `CLIPImageProcessor` resizes images to the model's size, as far as it can."""
    preprocess, how = bundle.preprocess, bundle.preprocess.eval
    height, width = preprocess.image_size
    whole = {"height": round(height / how.crop_pct), "width": round(width / how.crop_pct)}
    filter_name = "bilinear" if how.interpolation == "auto" else how.interpolation
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": min(whole.values())} if how.resize == "shorter" else whole,
        "resample": RESAMPLE.index(filter_name),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express."""
    return ["Images are squashed; the processor does not pad."] if bundle.preprocess.eval.resize == "pad" else []
