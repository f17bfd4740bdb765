"""Paths as people write them: `~` and environment variables stand for what a shell would put there."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})")
HOME = re.compile(
    r"((?:timm:)?local-dir:|file://|sqlite:///)?(~[^/]*)"
)  # what a path may stand behind, and whose home opens it


def expand(text: str) -> str:
    """A path or URL with `$NAME` and `${NAME}` replaced, and `~` or `~user` where it opens a path; `$$` is one dollar.

    In URLs variables are replaced, too, but a `~` stays: it is the server's. Raises ValueError, with what was expected
    in place of the text, for a variable that is not set and for the home of an unknown user.
    """
    path = VARIABLE.sub(_value, text)
    match = HOME.match(path)
    if match is None:
        return path
    before, user = match[1] or "", match[2]
    home = os.path.expanduser(user)
    if home == user:
        raise ValueError(f"a path, but there is no user {user[1:]!r}; a folder of the name {user} is ./{user}")
    return before + home + path[match.end() :]


def _value(match: re.Match[str]) -> str:
    if match[1]:
        return "$"
    name = match[2] or match[3]
    if name not in os.environ:
        raise ValueError(f"a path whose variables are set; {match[0]} is not, and a dollar sign itself is written $$")
    return os.environ[name]


def literal(path: str) -> str:
    """The text that `expand` takes for this path."""
    return path.replace("$", "$$")


PathText = Annotated[str, AfterValidator(expand), PlainSerializer(literal, when_used="json")]
