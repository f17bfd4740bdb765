"""From a folder on disk to a model that answers: `load_model` and `.predict`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError, ModelError
from pipeline.models.bundle import DESCRIPTION, Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN_STAGES = ("pretrain", "finetune")


class PretrainedMiniViT(MiniViT):
    """A MiniViT with what it needs to be used on images: `preprocess` and `classes`."""

    preprocess: Preprocess
    classes: list[str] | None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PretrainedMiniViT:
        """The bundle's model in fp32 and eval mode."""
        model = cls.from_spec(bundle.spec, init="torch")
        assert isinstance(model, cls)
        model.load_state_dict(bundle.state)
        model.preprocess, model.classes = bundle.preprocess, bundle.classes
        return model.float().eval()

    @torch.inference_mode()
    def predict(
        self, images: Sequence[str | os.PathLike[str] | Image], top_k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top_k` most probable (label, probability) of each image, a path or a PIL image.

        Label is the class's name, or its number where the model has no names. `DataError` for an unreadable image.
        """
        if not images:
            return []
        batch = torch.stack([self._read(image) for image in images]).to(self.patch_embed.proj.weight.device)
        probabilities = self(self.preprocess.normalise(batch)).float().softmax(dim=-1)
        top = probabilities.topk(min(top_k, self.spec.num_classes), dim=-1)
        return [
            [(self._label(index), value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def _label(self, index: int) -> str:
        return str(index) if self.classes is None else self.classes[index]

    def _read(self, image: str | os.PathLike[str] | Image) -> Tensor:
        """uint8 [C, H, W] at the model's size and channels."""
        import PIL.Image  # slow to import, needed only here

        height, width = self.preprocess.image_size
        mode = {1: "L", 3: "RGB"}.get(self.preprocess.channels)
        if mode is None:
            raise ModelError(f"predict: reads images of 1 or 3 channels; this model takes {self.preprocess.channels}")
        try:
            opened = PIL.Image.open(image) if isinstance(image, (str, os.PathLike)) else image
            converted = opened.convert(mode)
        except (OSError, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"{image}: cannot be read as an image ({error}); give a PNG, JPEG or WebP file") from error
        if converted.size != (width, height):
            converted = converted.resize((width, height), PIL.Image.Resampling.BILINEAR)
        array = np.asarray(converted, dtype=np.uint8).reshape(height, width, -1)
        return torch.from_numpy(array.transpose(2, 0, 1).copy())


def load_pretrained(path: str | os.PathLike[str]) -> PretrainedMiniViT:
    """See `pipeline.load_model`."""
    return PretrainedMiniViT.from_bundle(load_bundle(find_bundle(path)))


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """The bundle's folder in an export, a stage folder (its selected branch if it fans out) or a run folder.

    Raises `ModelError` where none is found.
    """
    folder = Path(path)
    if not folder.exists():
        raise ModelError(f"{folder}: does not exist; give an export, a stage's folder or a run's folder")
    if (folder / "stages").is_dir():
        return _last_finished(folder) / "model"
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    selected = _status(folder).get("selected")
    if selected and (folder / Path(selected).name / "model" / DESCRIPTION).is_file():
        return folder / Path(selected).name / "model"
    raise ModelError(
        f"{folder}: holds no finished model ({DESCRIPTION}); give an export, or a run whose training finished"
    )


def _last_finished(run: Path) -> Path:
    """The training stage, or branch of one, that finished last; of branches of one stage the selected one."""
    finished: dict[Path, dict[str, Any]] = {}
    for file in (*run.glob("stages/*/status.json"), *run.glob("stages/*/*/status.json")):
        status = _status(file.parent)
        done = status.get("state") == "finished" and status.get("type") in TRAIN_STAGES
        if done and (file.parent / "model" / DESCRIPTION).is_file():
            finished[file.parent] = status
    if not finished:
        raise ModelError(f"{run}: no training stage of this run has finished yet; run it to its end, or name a stage")
    last = max(finished, key=lambda stage: str(finished[stage].get("ended")))
    selected = _status(last.parent).get("selected") if last.parent.name != "stages" else None
    branch = last.with_name(Path(selected).name) if selected else last
    return branch if branch in finished else last


def _status(folder: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{folder / 'status.json'}: is not JSON ({error}); run the pipeline again to renew it"
        ) from error
    return status
