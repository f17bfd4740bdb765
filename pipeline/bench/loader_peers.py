"""Loaders of other libraries: random resized crop, flip and batches of uint8 images, as in their documentation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

SHUFFLE_BUFFER = 256  # samples; theirs buffer decoded images or files, ours uses windows


def webdataset_pil(urls: list[str], image_size: int, workers: int, batch_size: int, stack: ExitStack) -> Iterator[int]:
    """WebDataset, Pillow and torchvision's transforms of PIL images, as in timm and open_clip."""
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(image_size, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    return webdataset_batches(urls, workers, batch_size, stack, "pilrgb", transform)


def webdataset_torchvision(
    urls: list[str], image_size: int, workers: int, batch_size: int, stack: ExitStack
) -> Iterator[int]:
    """WebDataset, torchvision's own JPEG decoder and its transforms of tensors."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [torchvision_jpeg, v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    )
    return webdataset_batches(urls, workers, batch_size, stack, None, transform)


def torchvision_jpeg(data: bytes) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def webdataset_batches(
    urls: list[str],
    workers: int,
    batch_size: int,
    stack: ExitStack,
    decoder: str | None,
    transform: Callable[[Any], Any],
) -> Iterator[int]:
    import webdataset

    dataset = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(SHUFFLE_BUFFER)
    if decoder:
        dataset = dataset.decode(decoder)
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, int).batched(batch_size)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, worker_init_fn=partial(one_thread), persistent_workers=False
    )
    batches = iter(loader)
    stack.callback(batches._shutdown_workers)  # type: ignore[attr-defined]
    return (len(images) for images, _ in batches)


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def dali(urls: list[str], image_size: int, workers: int, batch_size: int, stack: ExitStack) -> Iterator[int]:
    """NVIDIA DALI on the CPU, with the decoder that decodes only the crop."""
    from nvidia.dali import fn, pipeline_def, types  # not a dependency, because it takes a gigabyte

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    index_paths = [write_dali_index(url, folder / f"{number}.idx") for number, url in enumerate(urls)]

    @pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        jpegs, labels = fn.readers.webdataset(
            paths=urls,
            index_paths=index_paths,
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=SHUFFLE_BUFFER,
            missing_component_behavior="error",
            dont_use_mmap=False,
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        images = fn.resize(images, resize_x=image_size, resize_y=image_size, interp_type=types.INTERP_TRIANGULAR)
        images = fn.crop_mirror_normalize(
            images, mirror=fn.random.coin_flip(), dtype=types.UINT8, output_layout="CHW", mean=[0.0], std=[1.0]
        )
        return images, labels

    pipe = pipeline()
    pipe.build()

    def batches() -> Iterator[int]:
        while True:
            images, _ = pipe.run()
            yield len(images)

    return batches()


def write_dali_index(url: str, path: Path) -> str:
    """A shard's index in DALI's own format: a line of (member, byte, bytes, name) per sample."""
    from pipeline.shards.members import split_name
    from pipeline.shards.store import open_url
    from pipeline.shards.tar import TarStream, members

    lines: dict[str, list[str]] = {}
    with open_url(url) as file:
        for member in members(TarStream(file)):
            split = split_name(member.name)
            if split:
                lines.setdefault(split[0], []).append(f"{split[1]} {member.data} {member.size} {member.name}")
    path.write_text("\n".join([f"v1.2 {len(lines)}", *(" ".join(parts) for parts in lines.values())]) + "\n")
    return str(path)
