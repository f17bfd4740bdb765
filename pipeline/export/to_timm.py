"""The layout of timm, for `timm.create_model(architecture, checkpoint_path=..., **model_args)` or as a hub folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.export.files import inexpressible_settings
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import Bundle
from pipeline.models.resizing import to_timm_config
from pipeline.models.timm_bridge import timm_config, to_timm
from pipeline.models.weights_file import save_tensors

LIBRARY = "timm"
USE = """```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg), is_training=False)
```"""


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `model.safetensors` and `config.json` (architecture, arguments, labels); returns the weights' path.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads both. Raises `ModelError` if timm has no such model.
    """
    architecture, arguments = timm_config(bundle.spec)
    tensors = to_timm(bundle.state, bundle.spec)
    backbone = bundle.spec.backbone
    height, width = backbone.image_size
    config = {
        "architecture": architecture,
        "num_classes": bundle.spec.num_classes,
        "global_pool": "token" if backbone.pool == "cls" else "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [backbone.channels, height, width],
            "mean": list(bundle.preprocess.mean),
            "std": list(bundle.preprocess.std),
            **to_timm_config(bundle.preprocess.eval),
            "num_classes": bundle.spec.num_classes,
            "label_names": bundle.classes,
        },
    }
    config |= inexpressible_settings(bundle.preprocess)
    write_json(folder / "config.json", config)
    return write_whole(folder / "model.safetensors", lambda path: save_tensors(path, tensors))


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express."""
    found = ["timm pads with the mean, not with the background."] if bundle.preprocess.eval.resize == "pad" else []
    if bundle.preprocess.eval.interpolation == "auto":
        found.append("Images are resized bilinearly, which differs little from `auto`.")
    return found if bundle.spec.is_classifier else [*found, "The pretraining heads are left out."]
