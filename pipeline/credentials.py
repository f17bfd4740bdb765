"""Hides the credentials in URLs before these are written or shown."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

SECRET_KEY = re.compile(
    r"(^|[-_.])(sig|signature|token|secret|password|passwd|pwd|credential|api_?key)$", re.IGNORECASE
)
HIDDEN = "***"
SHORTEST = 4  # a shorter secret could be part of any word


class _Parts(NamedTuple):
    """The parts of a URL `scheme://user@host/path?query`, each with its delimiter, as text."""

    scheme: str
    user: str
    middle: str
    query: str

    @classmethod
    def of(cls, url: str) -> _Parts:
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "", url
        before, question, query = rest.partition("?")
        authority, slash, path = before.partition("/")
        user, at, host = authority.rpartition("@")
        if not separator:  # a path may contain an @
            user, at, host = "", "", authority
        return cls(scheme + separator, user + at, host + slash + path + question, query)


def secrets_of(url: str) -> list[str]:
    """The credentials in a URL, as written: a password, a user name without one (a token), or values in the query."""
    parts = _Parts.of(url)
    name, has_password, password = parts.user.removesuffix("@").partition(":")
    found = [password if has_password else name if parts.scheme in ("http://", "https://") else ""]
    found += [value for key, value in _pairs(parts.query) if SECRET_KEY.search(key)]
    return [secret for secret in found if secret]


def shown(url: str) -> str:
    """A URL with its credentials hidden."""
    secrets, parts = secrets_of(url), _Parts.of(url)
    if not secrets:
        return url
    user = parts.user
    if user:
        name, has_password, _ = user.removesuffix("@").partition(":")
        kept = f"{name}:{HIDDEN}" if has_password else HIDDEN if name in secrets else name
        user = f"{kept}@"
    hidden = [f"{key}={HIDDEN if SECRET_KEY.search(key) else value}" for key, value in _pairs(parts.query)]
    return parts.scheme + user + parts.middle + "&".join(hidden)


def without_secrets_of(url: str, text: str) -> str:
    """A text, such as an error message, with all occurrences of a URL's credentials hidden."""
    for secret in secrets_of(url):
        for form in {secret, unquote(secret), quote(unquote(secret), safe="")}:
            if len(form) >= SHORTEST:
                text = text.replace(form, HIDDEN)
    return text


def _pairs(query: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)]
