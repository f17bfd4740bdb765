"""Mapping of a student's classes to its teacher's by name."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import ModelError

SHOWN = 5  # names listed in an error


def shared_classes(classes: Sequence[str], names: Sequence[str] | None, count: int) -> list[int]:
    """The teacher's class number for each of the student's classes; the teacher may have more classes.

    Args:
        classes: the student's class names.
        names: the teacher's class names; None if unknown, in which case equal numbers mean equal classes.
        count: number of the teacher's classes.

    Raises:
        ModelError: the teacher lacks one of the classes, or has no class names and a different number of classes.
    """
    if names is None:
        if count != len(classes):
            raise ModelError(
                f"its {count} classes have no names, but the student has {len(classes)} classes; use a teacher with "
                "the same classes"
            )
        return list(range(count))
    numbers = {name: number for number, name in enumerate(names)}
    missing = [name for name in classes if name not in numbers]
    if missing:
        shown = ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
        raise ModelError(
            f"it does not know the class {missing[0]!r} ({len(missing)} of {len(classes)} are missing); its classes "
            f"are {shown}; use the teacher's names in the data's `classes`, or set signal: features"
        )
    return [numbers[name] for name in classes]
