"""What a downstream user runs on exports, without this package; `FOLDER` has an export in each format.

Writes `answers.safetensors`: by format the outputs of `images.safetensors`, of `picture.png` through the format's own
preprocessing, and of `TEXTS` through the format's own tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

TEXTS = ["a cat", "two dogs and a bird"]


def main(folder: Path) -> None:
    images, picture = load_file(folder / "images.safetensors")["images"], folder / "picture.png"
    found = {}
    for read in (hugging_face, timm_, onnx, torch_export):
        for name in sorted(path.name for path in folder.glob(f"{read.__name__.strip('_')}*") if path.is_dir()):
            for what, tensor in read(folder / name, images, picture).items():
                found[f"{name}/{what}"] = tensor.contiguous()
    assert not [name for name in sys.modules if name == "pipeline" or name.startswith("pipeline.")]
    save_file(found, folder / "answers.safetensors")


@torch.no_grad()
def hugging_face(folder: Path, images: torch.Tensor, picture: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    answers = pipeline("image-classification", model=str(folder), image_processor=processor, top_k=None)(str(picture))
    scores = torch.tensor(
        [{row["label"]: row["score"] for row in answers}[name] for name in model.config.id2label.values()]
    )
    wide = images.expand(-1, model.config.num_channels, -1, -1)
    found = {"logits": model(pixel_values=wide).logits, "pixels": pixels, "picture": model(pixel_values=pixels).logits}
    return found | {"scores": scores}


@torch.no_grad()
def timm_(folder: Path, images: torch.Tensor, picture: Path) -> dict[str, torch.Tensor]:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg), is_training=False)
    image = Image.open(picture)
    pixels = transform(image if images.shape[1] == 3 else image.convert("L"))[None]
    return {"logits": model(images), "pixels": pixels, "picture": model(pixels)}


def onnx(folder: Path, images: torch.Tensor, picture: Path) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = json.loads((folder / "model.json").read_text())["graphs"]["model.onnx"]["outputs"]
    outputs = session.run(names, {"images": images.numpy()})
    found = {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}
    if (folder / "text.onnx").exists():
        session = onnxruntime.InferenceSession(folder / "text.onnx", providers=["CPUExecutionProvider"])
        found["texts"] = torch.from_numpy(session.run(None, {"tokens": tokens_of(folder).numpy()})[0])
    return found


def torch_export(folder: Path, images: torch.Tensor, picture: Path) -> dict[str, torch.Tensor]:
    names = json.loads((folder / "model.json").read_text())["graphs"]["model.pt2"]["outputs"]
    outputs = torch.export.load(folder / "model.pt2").module()(images)
    found = dict(zip(names, [outputs] if isinstance(outputs, torch.Tensor) else outputs, strict=True))
    if (folder / "text.pt2").exists():
        found["texts"] = torch.export.load(folder / "text.pt2").module()(tokens_of(folder))
    return found


def tokens_of(folder: Path) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens: torch.Tensor = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    return tokens


if __name__ == "__main__":
    main(Path(sys.argv[1]))
