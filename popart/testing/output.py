"""Lines for stdout and stderr that nobody has to read: printing them never blocks."""

from __future__ import annotations

import os
import queue
import select
import threading
from typing import TextIO

MOST_LINES = 10_000
"""The most lines that wait for a slow reader.  Further lines are dropped."""

LAST_SECONDS = 1.0
"""Seconds that the last lines may take when the program ends."""


class Output:
    """One stream, written by a thread of its own.

    It writes to the descriptor: a thread that is blocked in a file object would keep the interpreter from ending.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Without a *stream*, as where the descriptor was closed from the beginning, the lines are dropped."""
        descriptor = None if stream is None else stream.fileno()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write_all, args=[descriptor], daemon=True)
        self._guard = threading.Lock()
        self._left_out = 0
        self._thread.start()

    def print(self, line: str) -> None:
        with self._guard:
            if self._lines.qsize() >= MOST_LINES:
                self._left_out += 1
                return
            if self._left_out:
                self._lines.put(f"... {self._left_out} lines left out, because nobody read them")
                self._left_out = 0
            self._lines.put(line)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the last lines go, if they are read."""
        self._lines.put(None)
        self._thread.join(LAST_SECONDS)

    def _write_all(self, descriptor: int | None) -> None:
        while (line := self._lines.get()) is not None:
            octets = f"{line}\n".encode("utf-8", "backslashreplace")
            while octets and descriptor is not None:
                try:
                    octets = octets[os.write(descriptor, octets) :]
                except BlockingIOError:  # another program made the pipe non-blocking
                    select.select([], [descriptor], [])
                except OSError:
                    descriptor = None  # nobody reads any more
