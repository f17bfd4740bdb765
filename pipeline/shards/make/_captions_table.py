"""Reads captions of images from a table: CSV, TSV or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.fields import allowed
from pipeline.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
BY_LINE = (".jsonl", ".ndjson")


def read_captions(path: Path, image_column: str, caption_column: str) -> tuple[dict[str, list[str]], list[str]]:
    """Captions by image name, in the order of the table, and the rows without a caption.

    Several rows for one image give several captions, as does a list. Raises DataError for a file that cannot be read,
    or that lacks a column.
    """
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, *BY_LINE):
        raise DataError(
            f"--table {path}: expected {', '.join((*SEPARATORS, *BY_LINE))}; save the table as one of these"
        )
    text = _text(path)
    rows = _separated(path, text, SEPARATORS[suffix]) if suffix in SEPARATORS else _by_line(path, text)
    captions: dict[str, list[str]] = {}
    empty = []
    for number, row in rows:
        for option, column in (("--image-column", image_column), ("--caption-column", caption_column)):
            if column not in row:
                known = [name for name in row if isinstance(name, str)]
                raise DataError(
                    f"--table {path}: line {number} has no column {column!r}, {allowed(column, known)}; name it with "
                    f"{option}"
                )
        image, lines = row[image_column], _lines(row[caption_column])
        if isinstance(image, str) and image.strip() and lines:
            captions.setdefault(image.strip(), []).extend(lines)
        else:
            empty.append(f"line {number}")
    if not captions:
        raise DataError(f"--table {path}: found no image with a caption; write a header and one line for each")
    return captions, empty


def _lines(given: Any) -> list[str]:
    """The captions in a cell, each on one line."""
    several = given if isinstance(given, list) else [given]
    return [line for one in several if isinstance(one, str) and (line := " ".join(one.split()))]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--table {path}: cannot be read ({error.strerror}); correct the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--table {path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _separated(path: Path, text: str, separator: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey=None)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"--table {path}: line {rows.line_num} cannot be read ({error}); quote it as in CSV") from None


def _by_line(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"--table {path}: line {number} is not a JSON object; write one per line")
        yield number, row
