"""Reads a model's image normalisation and class names from the JSON files next to foreign weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.class_names import normalise_class_name
from pipeline.config.data import scale_fault
from pipeline.errors import ModelError

Values = tuple[float, ...]

# The usual normalisation, for checkpoints that do not state theirs.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Defaults of `transformers`: those of BiT's preprocessor, which DINOv2 uses, and of all others.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def normalisation(mean: Any, std: Any, channels: int) -> tuple[Values, Values]:
    """Mean and standard deviation per channel of pixels from 0 to 1, from lists or single numbers; None is the usual.

    If the number of channels differs, every channel takes the average. Raises `ModelError` for other types, and for
    values on another scale.
    """
    given = _per_channel("mean", MEAN if mean is None else mean), _per_channel("std", STD if std is None else std)
    if fault := scale_fault(*given):
        raise ModelError(f"the normalisation's {fault}")
    if min(given[1]) <= 0:
        raise ModelError(f"the normalisation's std: found {min(given[1]):g}, expected values above 0")
    widened = [values * channels if len(values) == 1 else values for values in given]
    fitting = [values if len(values) == channels else (sum(values) / len(values),) * channels for values in widened]
    return fitting[0], fitting[1]


def hugging_face_normalisation(settings: Mapping[str, Any], channels: int) -> tuple[Values, Values]:
    """The `normalisation` of pixels from 0 to 1 that equals a `preprocessor_config.json` for pixels from 0 to 255.

    `transformers` computes (x * factor - offset - mean) / std. Without rescaling, its images are assumed to be from 0
    to 1 if the mean is. Raises `ModelError` if the file leaves it open.
    """
    if not settings:
        return normalisation(None, None, channels)
    bit = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "").startswith("Bit")
    mean: Values = (0.0,)
    std: Values = (1.0,)
    normalises, rescales = settings.get("do_normalize", True), settings.get("do_rescale", True)
    if normalises:
        mean = _per_channel("image_mean", _given(settings, "image_mean", CLIP_MEAN if bit else HALF))
        std = _per_channel("image_std", _given(settings, "image_std", CLIP_STD if bit else HALF))
    if rescales:
        factor, offset = _number("rescale_factor", _given(settings, "rescale_factor", 1 / 255)), 0.0
        # ViViT's and EfficientNet's flags to subtract one after rescaling.
        offset += bool(settings.get("offset") or settings.get("rescale_offset"))
    elif normalises:
        factor, offset = (1 / 255 if max(mean) <= 1 else 1.0), 0.0
    else:
        raise ModelError(
            "do_rescale and do_normalize are false, so the scale of the model's images is unknown; set the one that "
            "applies, with rescale_factor or image_mean and image_std"
        )
    if factor <= 0:
        raise ModelError(f"rescale_factor: found {factor:g}, expected a number above 0 such as {1 / 255:.6f}")
    span = 255 * factor
    return normalisation([(value + offset) / span for value in mean], [value / span for value in std], channels)


def foreign_class_names(labels: Any, named: Any, num_classes: int) -> list[str] | None:
    """Class names in the order of their numbers, from `id2label` and `label2id`; None if their count differs.

    `labels` maps numbers, as text, to names in any order, or lists the names. If several classes share a name, each
    gets its number appended, as ImageNet's two cranes do. Raises `ModelError` for invalid numbers, or if the two
    disagree.
    """
    if not isinstance(labels, (Mapping, list, tuple)) or len(labels) != num_classes:
        return None
    entries = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    names = {_label_number("id2label", number): normalise_class_name(str(name)) for number, name in entries}
    missing = sorted(set(range(num_classes)) - names.keys())
    if missing:
        raise ModelError(f"id2label: found no name for class {missing[0]} of 0 to {num_classes - 1}; name all of them")
    if not isinstance(named or {}, Mapping):
        raise ModelError(f"label2id: found {named!r}, expected an object that maps names to numbers")
    times = Counter(names.values())
    for name, number in (named or {}).items():
        theirs = names.get(_label_number("label2id", number))
        if theirs is not None and theirs != normalise_class_name(name) and times[normalise_class_name(name)] < 2:
            raise ModelError(
                f"label2id: gives {name!r} the number {number}, which is {theirs!r} in id2label; correct one of them"
            )
    return [f"{names[n]} ({n})" if times[names[n]] > 1 else names[n] for n in range(num_classes)]


def _label_number(key: str, text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"{key}: found {text!r}, expected a class number") from None


def _given(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if settings.get(key) is None else settings[key]


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(f"{key}: found {value!r}, expected a number")
    return float(value)


def _per_channel(key: str, value: Any) -> Values:
    values: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ModelError(f"{key}: found an empty list; give a number, or one per channel")
    return tuple(_number(key, number) for number in values)
