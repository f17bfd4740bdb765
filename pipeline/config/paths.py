"""Expands `~` and environment variables in paths, as a shell does; refuses credentials in them."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from pipeline.credentials import secrets_of

VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})")
# A prefix that may precede a path, and the home directory at its start.
HOME = re.compile(r"((?:timm:)?local-dir:|file://|sqlite:///)?(~[^/]*)")


def expand(text: str) -> str:
    """Expand `$NAME` and `${NAME}` in a path or URL, and a leading `~` or `~user`; `$$` is one dollar sign.

    Variables are expanded in URLs too, but a `~` stays: it belongs to the server. Raises ValueError, saying what was
    expected, for an unset variable or an unknown user.
    """
    path = VARIABLE.sub(_value, text)
    match = HOME.match(path)
    if match is None:
        return path
    before, user = match[1] or "", match[2]
    home = os.path.expanduser(user)
    if home == user:
        raise ValueError(f"a path, but there is no user {user[1:]!r}; a folder named {user} is ./{user}")
    return before + home + path[match.end() :]


def _value(match: re.Match[str]) -> str:
    if match[1]:
        return "$"
    name = match[2] or match[3]
    if name not in os.environ:
        raise ValueError(f"a path whose variables are set, but {match[0]} is not (write $$ for a dollar sign)")
    return os.environ[name]


def literal(path: str) -> str:
    """The text that `expand` turns into this path."""
    return path.replace("$", "$$")


def public(url: str) -> str:
    """The URL itself. Raises ValueError, saying what was expected, if it holds credentials."""
    if secrets_of(url):
        raise ValueError(
            "a URL without a password, token or signature, because every run records it; set them in the "
            "environment, such as AWS_SECRET_ACCESS_KEY, or as headers in FSSPEC_HTTPS"
        )
    return url


UriText = Annotated[str, AfterValidator(expand), PlainSerializer(literal, when_used="json")]
PathText = Annotated[UriText, AfterValidator(public)]
