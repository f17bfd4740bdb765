"""Sections about data: shards, augmentation, mixtures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.class_names import normalise_class_name, repeated
from pipeline.config.fields import allowed
from pipeline.config.paths import PathText
from pipeline.config.section import Positive, Section, Share
from pipeline.config.targets import AnyTargets, TargetsConfig, every_kind, is_extension

Area = Annotated[float, Field(gt=0, le=1)]  # fraction of an image
AspectRatio = Annotated[float, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]  # red, green, blue
WHITE: Color = (255, 255, 255)
Classes = list[str] | dict[str, list[str]] | None
MAX_BLOCK = 1000  # most samples after which a mixture matches its weights exactly


class CacheConfig(Section):
    """A folder on each machine that caches reads of remote shards; evicts the least recently used first."""

    folder: PathText
    max_gigabytes: Annotated[float, Field(gt=0)]


class PlainConfig(Section):
    """How an image is brought to the model's size, without randomness, in validation, evaluation and prediction."""

    resize: Literal["squash", "shorter", "pad"] = Field(
        default="squash",
        description="squash: both sides, whatever the aspect ratio; shorter: the shorter side; pad: the longer side, "
        "with background around",
    )
    crop_pct: Area = Field(
        default=1.0, description="share of the resized image's sides that the centre crop keeps, as in timm"
    )
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = Field(
        default="auto", description="a filter of Pillow's; auto: the fastest, bilinear to shrink, bicubic to enlarge"
    )


SQUASH = PlainConfig()


class DatasetConfig(Section):
    """One set of WebDataset shards. `shards` is a folder, a glob or a brace pattern, local or any fsspec URL."""

    resolved: ClassVar[Mapping[str, str]] = {
        "shards": "the digest of their index says what they hold, wherever they lie",
        "image_key": "the members that are read, which the index may name too",
        "targets": "the members that are read, which the index may name too, and what they mean",
        "classes": "the stage's classes, and which of them each label is",
        "mean": "the model's preprocessing, which is that of the training data",
        "std": "the model's preprocessing, which is that of the training data",
    }
    without_effect: ClassVar[Mapping[str, str]] = {
        "make": "says how shards come to be there",
        "cache": "holds copies",
    }

    shards: PathText
    make: str | None = Field(default=None, description="built-in data set that `run` writes there if it is missing")
    classes: list[str] | dict[str, list[str]] | None = Field(
        default=None, description="class names, or those of each kind of target; default: those in the index"
    )
    image_key: str | None = Field(
        default=None, description="extensions of the image member, first match wins; default: the index's (png;jpg;..)"
    )
    targets: AnyTargets = Field(
        default=TargetsConfig(),
        description="labels by kind: the extension of the member, such as `class_id: cls`, or settings; default: the "
        "index's",
    )
    cache: CacheConfig | None = Field(default=None, description="local cache for remote shards; default: none")
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    background: Color = Field(
        default=WHITE, description="colour behind transparent pixels; grey images take its luminance"
    )
    eval: PlainConfig | None = Field(
        default=None,
        description="how evaluation resizes images; a model keeps the setting of its validation data, or else of its "
        "training data; default: the model's setting, or else squash",
    )

    @field_validator("classes")
    @classmethod
    def one_spelling(cls, classes: Classes) -> Classes:
        if classes is not None and not (classes if isinstance(classes, list) else all(classes.values()) and classes):
            raise ValueError("names, or null for those in the index")
        if isinstance(classes, dict):
            return {kind: [normalise_class_name(name) for name in names] for kind, names in classes.items()}
        return classes and [normalise_class_name(name) for name in classes]

    @field_validator("image_key")
    @classmethod
    def names_extensions(cls, key: str | None) -> str | None:
        if not all(map(is_extension, [] if key is None else key.split(";"))):
            raise ValueError("the extension of a member such as 'jpg', or 'png;jpg' for either")
        return key

    @field_validator("background", mode="before")
    @classmethod
    def color_by_name(cls, given: Any) -> Any:
        color = given
        if isinstance(given, str):
            from PIL import ImageColor  # rarely needed

            with suppress(ValueError):
                color = ImageColor.getrgb(given)
        if not isinstance(color, (list, tuple)) or len(color) != 3:
            raise ValueError("a colour such as black, '#ff8800' or [255, 136, 0]")
        return tuple(color)

    @model_validator(mode="after")
    def one_class_per_name(self) -> Self:
        by_kind = self.classes if isinstance(self.classes, dict) else {"": self.classes or []}
        for kind, names in by_kind.items():
            where = f"classes.{kind}" if kind else "classes"
            if kind and kind not in (kinds := list(every_kind().model_fields)):
                raise ValueError(f"{where}: not a kind of target; {allowed(kind, kinds)}")
            if "" in names:
                raise ValueError(f"{where}: name {names.index('')} is blank; give each class a name")
            if twice := repeated(names):
                name, numbers = twice
                found = " and ".join(map(str, numbers))
                raise ValueError(
                    f"{where}: classes {found} are both named {name!r}, so they would merge; rename one of them"
                )
        return self

    def classes_of(self, kind: str) -> list[str] | None:
        """The class names of a kind; a plain list applies to the kind that a task uses."""
        return self.classes.get(kind) if isinstance(self.classes, dict) else self.classes

    @model_validator(mode="after")
    def one_mean_per_std(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"std: found {len(self.std)} values, but mean has {len(self.mean)}; give one per channel in each"
            )
        if fault := scale_fault(self.mean, self.std):
            raise ValueError(fault)
        return self


def scale_fault(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """What is wrong with a mean and standard deviation of pixel values from 0 to 1, as `field: sentence`."""
    wrong = {"mean": _outside(mean), "std": _outside(std)}
    name = next((name for name, value in wrong.items() if value is not None), None)
    if name is None:
        return None
    fault = f"{name}: found {wrong[name]:g}, but pixel values are between 0 and 1"
    if not 1 < (wrong[name] or 0) <= 255:
        return f"{fault}; give the {name} of such values"
    meant = {"mean": mean, "std": std} if name == "mean" else {"std": std}  # both were measured on the same scale
    divided = ", ".join(f"{key} [{', '.join(f'{value / 255:.4g}' for value in meant[key])}]" for key in meant)
    return f"{fault}; divide values measured from 0 to 255 by 255: {divided}"


def _outside(values: Sequence[float]) -> float | None:
    return next((value for value in values if not 0 <= value <= 1), None)


class RandAugmentConfig(Section):
    ops: Positive = 2
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9


class AugmentConfig(Section):
    """Training-time augmentation; all random draws derive from (seed, slot)."""

    crop: Literal["none", "padded", "simple", "random_resized"] = Field(
        default="random_resized", description="simple: the shorter side fits, the rest is cut off at random (DeiT III)"
    )
    padding: Share = Field(default=0.125, description="for crop: padding, as a share of the image's sides")
    scale: tuple[Area, Area] = (0.08, 1.0)
    ratio: tuple[AspectRatio, AspectRatio] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    rand_augment: RandAugmentConfig | None = None
    three_augment: bool = Field(default=False, description="grey, solarised or blurred, one of the three (DeiT III)")
    erase: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, and their labels with them."""
        return self.mixup > 0 or self.cutmix > 0

    @field_validator("scale", "ratio")
    @classmethod
    def ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError("a list of 2, the smaller first")
        return limits


class MixturePart(Section):
    """The share of one data set in a mixture, and the treatment of its samples there."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    augment: AugmentConfig | None = Field(default=None, description="default: the stage's data.augment")
    label_map: dict[str, str] = Field(
        default_factory=dict, description="renames classes of this data set to the names used here"
    )

    @field_validator("label_map")
    @classmethod
    def one_spelling(cls, names: dict[str, str]) -> dict[str, str]:
        one_spelling = [(normalise_class_name(old), normalise_class_name(new)) for old, new in names.items()]
        if any("" in pair for pair in one_spelling) or repeated(old for old, _ in one_spelling):
            raise ValueError("a mapping of class names to class names, without repeated or blank ones")
        return dict(one_spelling)


class DataConfig(Section):
    resolved: ClassVar[Mapping[str, str]] = {"exclude": "the digest of the manifest's lines"}
    without_effect: ClassVar[Mapping[str, str]] = {
        "loader_workers": "the order of the samples does not depend on who reads them"
    }

    train: str | None = Field(default=None, description="name of an entry of `datasets`")
    mixture: dict[str, MixturePart] = Field(
        default_factory=dict, description="entries of `datasets` and their weights, instead of `train`"
    )
    val: str | None = Field(
        default=None, description="name of an entry of `datasets`, used during training and to pick the best branch"
    )
    augment: AugmentConfig = AugmentConfig()
    lanes: Positive = Field(default=64, description="C of the sample order; never changes within a run")
    window: Positive = Field(default=512, description="samples shuffled together within a lane")
    loader_workers: Annotated[int, Field(ge=0)] = 1
    exclude: PathText | None = Field(
        default=None, description="quarantine manifest of an earlier run, whose samples are left out"
    )

    @model_validator(mode="after")
    def train_or_mixture(self) -> Self:
        if (self.train is None) == (not self.mixture):
            raise ValueError("train: set exactly one of `train` (the name of an entry of `datasets`) and `mixture`")
        if sum(self.weights) > MAX_BLOCK:
            raise ValueError(
                f"mixture: the weights give whole numbers of samples only for {sum(self.weights)} samples in total; "
                f"round them so that a total of at most {MAX_BLOCK} is enough"
            )
        return self

    @property
    def parts(self) -> dict[str, MixturePart]:
        """The training data sets by name; a single one is a mixture of one."""
        return self.mixture or {str(self.train): MixturePart()}

    @property
    def weights(self) -> list[int]:
        """The weights of `parts` as the smallest integers in the same ratio."""
        exact = [Fraction(repr(part.weight)) for part in self.parts.values()]  # as written: 0.1 is a tenth
        whole = [int(weight * math.lcm(*(w.denominator for w in exact))) for weight in exact]
        return [weight // math.gcd(*whole) for weight in whole]
