"""What handlers print."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from popart.testing.check.client import Credentials
from popart.testing.check.recorder import Recorder


class Output:
    """Stands in for ``sys.stdout`` and ``sys.stderr``.  What a handler prints goes to the standard error."""

    def __init__(self, recorder: Recorder, marker: str, right: Credentials) -> None:
        """*right* is the user with the right secret."""
        self.marker: str = marker
        """A wrong secret, which no other text contains."""

        self._recorder = recorder
        self._right = right
        self._error: TextIO = _opened(sys.stderr)
        self._broken: int | None = None

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Watch what is printed."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Stream(self, _opened(stream)) for stream in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Let handlers find that nobody reads their output any more, as after ``| head -1``."""
        reader, self._broken = os.pipe()
        os.close(reader)
        try:
            yield
        finally:
            broken, self._broken = self._broken, None
            os.close(broken)

    def takes(self, text: str) -> bool:
        """Take what is printed, if a handler prints it."""
        method = self._recorder.method_here()
        if method is None:
            return False
        if self.marker in text or (method.startswith("authenticate_") and self._shows_secret(text)):
            self._recorder.report.add(
                f"{method} prints the password",
                "whoever reads the output, or the logs that keep it, can read the user's mail",
                "Print no argument of a sign-in",
            )
        if self._broken is not None:
            os.write(self._broken, text.encode("utf-8", "backslashreplace"))
        else:
            with suppress(OSError):
                self._error.write(text)
        return True

    def _shows_secret(self, text: str) -> bool:
        """Return whether the right secret is a word of a text.  A secret that is the user's name may be the name."""
        user, secret = self._right.user, self._right.secret
        return secret != user and re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is not None

    def descriptor(self) -> int | None:
        """Return what a handler finds as the output's descriptor, if it is not the true one."""
        return self._broken if self._recorder.method_here() is not None else None


def _opened(stream: TextIO | None) -> TextIO:
    """Return a standard stream or, if it is closed, as by ``2>&-``, one that nobody reads."""
    return io.StringIO() if stream is None else stream


class _Stream:
    def __init__(self, output: Output, stream: TextIO) -> None:
        self._output = output
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return len(text) if self._output.takes(text) else self._stream.write(text)

    def fileno(self) -> int:
        return self._output.descriptor() or self._stream.fileno()
