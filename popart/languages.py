"""The languages of the command LANG (RFC 6856 section 3): the check of a handler's list, and the choice from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from popart.errors import HandlerError
from popart.handler_calls import bad_type, show

MAX_LANGUAGE_NAME = 64
"""The most characters of a language's name: no real name is as long."""

_LANGUAGE_TAG = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,7}")  # RFC 5646 section 2.1, roughly


def check_languages(languages: object) -> dict[str, str]:
    """Return what a handler's ``get_languages`` gave, tags and names.

    :raises HandlerError: it is not a mapping, or a tag or a name cannot stand on the wire.
    """
    if not isinstance(languages, Mapping):
        raise bad_type("get_languages", languages, "a mapping of tags to names")
    found: dict[str, str] = {}
    for tag, name in languages.items():
        if not (isinstance(tag, str) and _LANGUAGE_TAG.fullmatch(tag)):
            raise HandlerError(f"a language tag has ASCII letters, digits and hyphens: {show(tag)}")
        if not (isinstance(name, str) and name.isprintable() and len(name) <= MAX_LANGUAGE_NAME):
            raise HandlerError(
                f"the name of language {show(tag)} has at most {MAX_LANGUAGE_NAME} printable characters: {show(name)}"
            )
        found[str.__str__(tag)] = str.__str__(name)  # a subclass could look different on the wire
    return found


def choose_language(wanted: str, tags: Iterable[str]) -> str | None:
    """Return the tag that a client's language range stands for (RFC 4647 section 3.3.1).

    That is the tag itself if it is there, otherwise the first that begins with it and a hyphen.  ``*`` is the first of
    all.  None if there is none.
    """
    prefix = wanted.encode().lower()  # bytes: str.lower knows letters beyond ASCII
    found = None
    for tag in tags:
        lower = tag.encode().lower()
        if wanted == "*" or lower == prefix:
            return tag
        if found is None and lower.startswith(prefix + b"-"):
            found = tag
    return found
