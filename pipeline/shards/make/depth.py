"""Shards of images and depth maps from two folders with the same file names."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipeline.errors import DataError
from pipeline.images.decode import BadImage
from pipeline.images.depth_map import ShallowDepth, decode_depth, read_depth_size
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._files import listing_hash
from pipeline.shards.make._folder_tree import read_tree
from pipeline.shards.make._import_report import check_taken, import_report
from pipeline.shards.make._mask_pairs import MaskPair, Words, pair_up
from pipeline.shards.make._samples import (
    NewSample,
    Prefix,
    Rejected,
    SamplesPerShard,
    WriteOptions,
    read_file,
    read_image,
    write_samples,
)
from pipeline.shards.make._val_split import Seed, Val, split_rows
from pipeline.shards.parallel import Workers
from pipeline.targets.base import BadLabel
from pipeline.targets.mask import check_size

MEMBER = "depth.png"
WORDS = Words("depth map", "--depth", "--image-suffix .jpg --depth-suffix _depth.png")


@dataclass(frozen=True)
class DepthReader:
    """Reads the sample of a pair. Raises DataError for 8-bit or colour PNGs, which suggest that all files are bad."""

    images: Path
    depth: Path

    def __call__(self, pair: MaskPair) -> NewSample:
        image, header = read_image(self.images / pair.image, pair.image)
        depth = read_file(self.depth / pair.mask, pair.mask)
        try:
            check_size(read_depth_size(depth), (header.height, header.width), WORDS.noun)
            steps = decode_depth(depth)
        except ShallowDepth as shallow:
            raise DataError(f"{self.depth / pair.mask}: is {shallow}") from None
        except (BadImage, BadLabel) as bad:
            raise Rejected(pair.mask, str(bad)) from None
        if not steps.any():
            raise Rejected(pair.mask, "the depth map is 0 everywhere: nothing was measured")
        return NewSample(pair.image, {Path(pair.image).suffix.lower()[1:]: image, MEMBER: depth})


def make(
    out: Path,
    *,
    images: Annotated[Path, "folder of images, with or without subfolders"],
    depth: Annotated[Path, "folder of 16-bit grey PNGs of the same size as the images; 0 where nothing was measured"],
    image_suffix: Annotated[
        str | None, "end of the images' names, after the part that they share with the depth maps"
    ] = None,
    depth_suffix: Annotated[str, "end of the depth maps' names, such as _depth.png"] = ".png",
    only: Annotated[Path | None, "text file that lists the pairs to import, one per line"] = None,
    val: Val = None,
    samples_per_shard: SamplesPerShard = 1_000,
    prefix: Prefix = "train",
    seed: Seed = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images and depth maps from two folders with the same file names.

    Both stay unchanged; depth is in millimetres unless you set `targets.depth.scale` of the data set. Skipped
    files are reported with the reason, and bad ones listed in `PREFIX-rejected.txt`. An interrupted call resumes.
    Raises DataError if no depth map matches an image, if one does not have 16 bits, or if `out` has shards with the
    same prefix from other files or with other settings.
    """
    options = WriteOptions(prefix, samples_per_shard, seed, val, workers)
    image_tree = read_tree(images, out, "--images is a folder of images")
    depth_tree = read_tree(depth, out, "--depth is a folder of PNGs")
    pairing = pair_up(image_tree.all_images(), depth_tree.all_images(), (image_suffix, depth_suffix), only, WORDS)
    pairs, reports = pairing.pairs, []
    for name, rows in split_rows([pair.image for pair in pairs], options).items():
        chosen = [pairs[row] for row in rows]
        plan = {"listing_sha256": listing_hash((f"{pair.image}\0{pair.mask}", pair.size) for pair in chosen)}
        reports.append(write_samples(out, name, chosen, DepthReader(images, depth), plan, options))
    taken = check_taken(images, len(pairs), reports)
    index = build_index(str(out), workers=workers)
    print(
        import_report(f"{images}: {taken:,} images with depth maps imported", pairing.left_out, reports),
        file=sys.stderr,
    )
    return index
