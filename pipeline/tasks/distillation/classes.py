"""Which of a teacher's classes are a student's, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import ModelError

SHOWN = 5  # names in a sentence


def shared_classes(classes: Sequence[str], names: Sequence[str] | None, count: int) -> list[int]:
    """For each of the student's classes the number of the teacher's, which may have more.

    Args:
        classes: the student's.
        names: the teacher's; None if nobody names them, and then the numbers are taken for the same.
        count: how many the teacher has.

    Raises:
        ModelError: the teacher lacks one of the classes, or names none and has another number of them.
    """
    if names is None:
        if count != len(classes):
            raise ModelError(
                f"its {count} classes have no names, and the student has {len(classes)} classes; take a teacher of the "
                "same classes"
            )
        return list(range(count))
    numbers = {name: number for number, name in enumerate(names)}
    missing = [name for name in classes if name not in numbers]
    if missing:
        shown = ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
        raise ModelError(
            f"it does not know the class {missing[0]!r} ({len(missing)} of {len(classes)} are missing); its classes "
            f"are {shown}; name the data's `classes` as the teacher does, or set signal: features"
        )
    return [numbers[name] for name in classes]
