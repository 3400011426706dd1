"""Follow the tutorial like a first-time reader: make each file, run each command, and type each session, as printed.

    python3 docs/follow_tutorial.py WHEEL

It works in a new directory with a new virtual environment.  It installs the wheel in place of ``~/popart``, asks no
index, and takes a free port in place of 1100.  Everything else is as printed, and the answers must be too.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = ("tutorial-list.rst", "tutorial-sqlite.rst")
CHECKOUT = "~/popart"
"""The path of popart's checkout in the pages."""

PATIENCE = 60.0
"""Seconds for one command.  Making a virtual environment takes the longest."""

_DIRECTIVE = re.compile(
    r"^(?P<indent> *)\.\. (?P<name>code-block|literalinclude):: (?P<argument>\S+)\n"
    r"(?P<options>(?:(?P=indent)   :.*\n)*)"
    r"(?P<body>(?:\n|(?P=indent)   .*\n)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """Something that a page shows: code, a terminal or a session."""

    language: str
    text: str
    caption: str | None
    """The name of the file that the reader makes."""

    source: Path | None = None
    """The file that is included."""


def blocks(page: Path) -> Iterator[Block]:
    """Yield what a page shows, from top to bottom."""
    for found in _DIRECTIVE.finditer(page.read_text("utf-8")):
        options = dict(re.findall(r":([\w-]+):(?: (.*))?", found["options"]))
        if found["name"] == "code-block":
            yield Block(found["argument"], textwrap.dedent(found["body"]).strip("\n") + "\n", options.get("caption"))
        else:
            source = page.parent / found["argument"]
            yield Block("python", source.read_text("utf-8"), options.get("caption"), source)


class Shell:
    """The first terminal."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def run(self, command: str, answer: str) -> None:
        """Type a command and read its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho status: $?\n".encode())
        output = ""
        done = False
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            # A program started with & may print after its status is known.
            while not (done and output == answer):
                octets = selector.select(deadline - time.monotonic()) and os.read(self._process.stdout.fileno(), 65_536)
                if not octets or re.search(r"^status: [1-9]", output, re.MULTILINE):
                    raise AssertionError(f"$ {command}\nshould have said:\n{answer}\nbut said:\n{output}")
                output += octets.decode()
                if "status: 0\n" in output:
                    output = output.replace("status: 0\n", "")
                    done = True
                output = re.sub(r"^bash: line .* (Terminated|Killed) .*\n", "", output, count=0, flags=re.MULTILINE)

    def close(self) -> None:
        """Leave, and let nothing run on."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"kill -9 $(jobs -p)\n")
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


class Reader:
    """Somebody who does everything that the tutorial says."""

    def __init__(self, directory: Path, environment: dict[str, str], wheel: Path | None = None) -> None:
        self._directory = directory
        self._wheel = wheel
        self._shell = Shell(directory, environment)
        self._sessions: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._shell.close()
        for session in self._sessions:
            session.close()

    def follow(self, page: Path) -> None:
        """Do everything that a page says."""
        for block in blocks(page):
            text = block.text.replace("1100", self._port)
            if block.language == "console":
                self._use_terminal(text)
            elif block.language == "pop3":
                self._hold_session(text)
            elif block.caption:
                (self._directory / block.caption).write_text(text, "utf-8")

    def _use_terminal(self, text: str) -> None:
        if CHECKOUT in text:
            if self._wheel is None:
                return
            text = text.replace(CHECKOUT, str(self._wheel))
        for command, answer in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            self._shell.run(command, answer)

    def _hold_session(self, text: str) -> None:
        """Be telnet."""
        telnet, *lines = text.splitlines()
        host, port = telnet.removeprefix("$ telnet ").split()
        session = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._sessions.append(session)
        with session.makefile("rb") as answers:
            for line in lines:
                said = line[3:].encode() + b"\r\n"
                if line.startswith("C:"):
                    session.sendall(said)
                else:
                    answer = answers.readline()
                    assert answer == said, f"the page has {said!r}, the server says {answer!r}"


def follow_all(directory: Path, environment: dict[str, str], wheel: Path | None = None) -> None:
    """Follow the tutorial in *directory*.  Without a *wheel* nothing is installed."""
    with Reader(directory, environment, wheel) as reader:
        for page in PAGES:
            reader.follow(DOCS / page)


def main(wheel: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the tutorial's shell would inherit an ignored signal
    with tempfile.TemporaryDirectory() as directory:
        follow_all(Path(directory), {"PIP_NO_INDEX": "1", "PIP_QUIET": "1"}, Path(wheel).resolve())
    print("The tutorial can be followed.")


if __name__ == "__main__":
    main(sys.argv[1])
