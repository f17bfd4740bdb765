"""Hugging Face's ViT, DeiT and DINOv2, for the Auto classes of `transformers` and its image-classification pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.export.files import inexpressible_settings
from pipeline.export.limits import check_hf_images
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.hf_layout import to_hugging_face
from pipeline.models.resizing import RESAMPLE
from pipeline.models.weights_file import save_tensors

LIBRARY = "transformers"
USE = """```python
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModelForImageClassification.from_pretrained("{folder}")
pipeline("image-classification", model="{folder}")("image.png")
```

Without a classifier, `AutoModel` gives the tokens after the last norm, and `Dinov2Backbone` (with registers
`Dinov2WithRegistersBackbone`) feature maps of any layers, for dense tasks. `AutoBackbone` opens no local folders."""


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`; returns the folder.

    Raises `ModelError` if `transformers` has no such model, or no such way to resize images.
    """
    check_hf_images(bundle.preprocess.eval, bundle.preprocess.image_size)
    tensors, config = to_hugging_face(bundle.state, bundle.spec, bundle.classes)
    write_json(folder / "config.json", config | {"minivit": inexpressible_settings(bundle.preprocess)})
    write_json(folder / "preprocessor_config.json", preprocessor_config(bundle.preprocess))
    write_whole(folder / "model.safetensors", lambda path: save_tensors(path, tensors))
    return folder


def preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    """The processor that yields our pixels: Pillow's filters, the same sizes and the same centre."""
    how, (height, width) = preprocess.eval, preprocess.image_size
    scaled = [math.floor(side / how.crop_pct) for side in (height, width)]
    crops = how.resize == "shorter" or how.crop_pct < 1
    size = {"shortest_edge": min(scaled)} if how.resize == "shorter" else {"height": scaled[0], "width": scaled[1]}
    times = 3 if preprocess.channels == 1 else 1
    return {
        "image_processor_type": "BitImageProcessor" if crops else "ViTImageProcessor",
        "do_convert_rgb": preprocess.channels in (1, 3),
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE.index("bilinear" if how.interpolation == "auto" else how.interpolation),
        "do_center_crop": crops,
        **({"crop_size": {"height": height, "width": width}} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean) * times,
        "image_std": list(preprocess.std) * times,
    }


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express."""
    found = [
        "Transparent pixels lose their alpha; here they show the background " + str(list(bundle.preprocess.background))
    ]
    if bundle.preprocess.channels == 1:
        found.append(
            "The model was trained on grey images; its kernel weighs red, green and blue as a conversion to grey does."
        )
    if bundle.preprocess.eval.interpolation == "auto":
        found.append("Images are resized bilinearly, which differs little from `auto`.")
    if not bundle.spec.is_classifier:
        found.append("The pretraining heads are left out; outputs are those of the last norm.")
    return found
