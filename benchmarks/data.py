"""The mail that every server serves, and the octets that must come over the wire.

It is made from a seed, so each process makes the same.

A maildrop is also a user's name; the password is always `PASSWORD`.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from pathlib import Path

SEED = 1939
PASSWORD = "secret"

DISTINCT = 100
"""How many messages of a maildrop differ; later ones repeat them, with other ids."""

_WORDS = "the post office keeps a letter until its owner asks for it and then forgets that it ever was there".split()


@dataclass(frozen=True)
class Maildrop:
    """A user's mail."""

    name: str
    contents: list[bytes]
    count: int

    def message(self, number: int) -> bytes:
        """Return message *number* (1 or more) as it is stored."""
        return self.contents[(number - 1) % len(self.contents)]

    def listing(self) -> list[tuple[int, str]]:
        """Return the size on the wire and the unique-id of each message."""
        sizes = [len(_with_crlf(content)) for content in self.contents]
        return [(sizes[n % len(sizes)], f"{10**9 + n}.{self.name}") for n in range(self.count)]


MAILDROPS = {
    # name: messages, octets of each on the wire, line end in the store
    "small": (10, 1024, b"\n"),
    "pipeline": (200, 1024, b"\n"),
    "medium": (100, 8192, b"\n"),
    "large-lf": (1, 25_000_000, b"\n"),
    "large-crlf": (1, 25_000_000, b"\r\n"),
    "10000": (10_000, 512, b"\n"),
    "100000": (100_000, 512, b"\n"),
}


def make_maildrop(name: str) -> Maildrop:
    """Make one of `MAILDROPS`."""
    count, size, line_end = MAILDROPS[name]
    contents = [_make_message(f"{SEED} {name} {n}", size, line_end) for n in range(min(count, DISTINCT))]
    return Maildrop(name, contents, count)


def _make_message(seed: str, size: int, line_end: bytes) -> bytes:
    """Make a message of *size* octets on the wire: header, text with some leading dots, attachment if it is long."""
    rng = random.Random(seed)
    lines = [b"Subject: message " + seed.encode(), b"From: bob@example.org", b"To: alice@example.org", b""]
    left = size - sum(len(line) + 2 for line in lines)
    text = min(left, 65_536)
    left -= text
    while text > 80:
        line = " ".join(rng.choices(_WORDS, k=10))[:72].encode()
        if rng.random() < 0.03:
            line = b"." + line
        lines.append(line)
        text -= len(line) + 2
    left += text
    if left > 80:
        whole = (left - 80) // 78
        lines += base64.encodebytes(rng.randbytes(whole * 57)).splitlines()
        left -= whole * 78
    if left > 80:
        lines.append(b"-" * 38)
        left -= 40
    lines.append(b"." * (left - 2))
    return line_end.join(lines) + line_end


def _with_crlf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def encode(content: bytes) -> bytes:
    """Return all after RETR's status line, made the plain way: line ends, then dot-stuffing, then the final dot."""
    octets = _with_crlf(content).replace(b"\r\n.", b"\r\n..")
    return (b"." if octets.startswith(b".") else b"") + octets + b".\r\n"


# Commands, and the octets after the status line of a good answer: None if the answer is that line alone.

Exchange = tuple[bytes, bytes | None]


def sign_in(maildrop: Maildrop) -> list[Exchange]:
    """Return the commands that open a maildrop."""
    return [(f"USER {maildrop.name}\r\n".encode(), None), (f"PASS {PASSWORD}\r\n".encode(), None)]


def look(maildrop: Maildrop) -> list[Exchange]:
    """Return STAT, LIST and UIDL."""
    listing = maildrop.listing()
    sizes = "".join([f"{n} {size}\r\n" for n, (size, _) in enumerate(listing, 1)])
    ids = "".join([f"{n} {identifier}\r\n" for n, (_, identifier) in enumerate(listing, 1)])
    return [(b"STAT\r\n", None), (b"LIST\r\n", f"{sizes}.\r\n".encode()), (b"UIDL\r\n", f"{ids}.\r\n".encode())]


def stat_line(maildrop: Maildrop) -> bytes:
    """Return the octets that STAT's status line must begin with."""
    return f"+OK {maildrop.count} {sum(size for size, _ in maildrop.listing())}".encode()


def retrieve(maildrop: Maildrop, numbers: range) -> list[Exchange]:
    """Return a RETR for each of the messages."""
    return [(b"RETR %d\r\n" % n, encode(maildrop.message(n))) for n in numbers]


def noops(count: int) -> list[Exchange]:
    command: Exchange = (b"NOOP\r\n", None)
    return [command] * count


def deletions(count: int) -> list[Exchange]:
    """Return *count* commands: DELE of the first messages, then RSET."""
    commands: list[Exchange] = [(b"DELE %d\r\n" % n, None) for n in range(1, count)]
    return [*commands, (b"RSET\r\n", None)]


QUIT: list[Exchange] = [(b"QUIT\r\n", None)]

BATCH = 200
"""How many commands a pipelined write has."""


def batches(maildrop: Maildrop) -> dict[str, list[Exchange]]:
    """Return the pipelined writes, by name."""
    return {
        "NOOP": noops(BATCH),
        "DELE": deletions(BATCH),
        "RETR": retrieve(maildrop, range(1, BATCH + 1)),
    }


def paths(maildrop: Maildrop, root: Path) -> list[Path]:
    """Return the files of `write_maildir`, by message number."""
    return [root / maildrop.name / "cur" / f"{identifier}:2,S" for _, identifier in maildrop.listing()]


def write_maildir(maildrop: Maildrop, root: Path) -> None:
    """Write a maildrop as the Maildir *root*/*name*.  Files of equal content are links to one."""
    directory = root / maildrop.name
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    # In some file systems a file has at most 65,000 links; far fewer messages share a content.
    first: dict[int, Path] = {}
    for n, path in enumerate(paths(maildrop, root)):
        kind = n % len(maildrop.contents)
        if kind in first:
            path.hardlink_to(first[kind])
        else:
            path.write_bytes(maildrop.contents[kind])
            first[kind] = path
