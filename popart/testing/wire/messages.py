"""A maildrop of messages that are hard to carry, for any server.

    python3 -m popart.testing.wire.messages DIR          writes them into a new Maildir

The Message-ID of each hard message holds the message's name.  The suite finds the message by it in any server.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def message_id(name: str) -> bytes:
    """Return the header line that identifies a hard message."""
    return b"Message-ID: <%b@wire.example>" % name.encode()


def make_message(name: str, body: bytes, end: bytes = b"\r\n") -> bytes:
    """Return a message whose header has the given line ends."""
    header = [b"From: bob@example.org", b"To: alice@example.org", b"Subject: " + name.encode(), message_id(name), b""]
    return end.join([*header, body])


def _large() -> bytes:
    """Make a message with a CR before one 64 KiB border, and a line's end before another: servers may cut there."""
    message = make_message("large", b"")
    for border in (1, 2):
        end = border * 65_536 + border % 2  # at an odd border the line's LF comes after it
        while len(message) < end - 200:
            message += b"." * (len(message) % 3) + b"%d\r\n" % len(message)
        message += b"x" * (end - len(message) - 2) + b"\r\n.\r\n"
    return message


HARD = {
    "crlf": make_message("crlf", b"one\r\ntwo\r\n"),
    "lf": make_message("lf", b"one\ntwo\n", b"\n"),
    "mixed": make_message("mixed", b"LF\nCRLF\r\nLF\n\r\n\nend\r\n", b"\n"),
    "dots": make_message("dots", b".\r\n..\r\n...\r\n.hidden\r\nnot . here.\r\n.\r\n"),
    "dots-lf": make_message("dots-lf", b".\n..\n.\r\n.hidden\n.", b"\n"),
    "no-final-newline": make_message("no-final-newline", b"one\r\nand the last line has no end"),
    "empty-body": make_message("empty-body", b""),
    "blank-lines": make_message("blank-lines", b"\r\n\r\n\r\n"),
    "eight-bit": make_message("eight-bit", "Grüße, 今日は\r\n".encode() + bytes(range(0x80, 0x100)) + b"\r\n"),
    "long-line": make_message("long-line", b"." + b"x" * 997 + b"\r\n" + b"y" * 20_000 + b"\r\n"),
    "from": make_message("from", b"From the start of a line\r\n>From the second\r\n"),
    "large": _large(),
    "lone-cr": make_message("lone-cr", b"a\rb\r\r\n.\rc\r\n"),
    "nul": make_message("nul", b"a\0b\r\n\0\r\n"),
}
"""The hard messages as they are stored, with mixed line ends."""

ORDINARY = [make_message(f"ordinary-{number}", b"Nothing special.\r\n") for number in range(1, 13)]
"""Messages for tests to delete.  They come last, because tests delete from the end."""

ALL = [*HARD.values(), *ORDINARY]


def on_the_wire(message: bytes) -> bytes:
    """Return a message as POP3 sends it, before dot-stuffing: with CRLF line ends, one at its very end."""
    message = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    return message if message.endswith(b"\r\n") or not message else message + b"\r\n"


def write_maildir(directory: Path) -> None:
    """Write all messages into a new Maildir, in their order."""
    for name in ("tmp", "new", "cur"):
        (directory / name).mkdir(parents=True)
    for number, message in enumerate(ALL, 1):
        (directory / "cur" / f"{1_000_000_000 + number}.{number}.wire:2,").write_bytes(message)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m popart.testing.wire.messages DIR")
    write_maildir(Path(sys.argv[1]))
