"""A coverage-guided fuzz target for the line reader, the message encoder and the whole session.

Run it by hand from the top of the checkout, on a Python that atheris supports (3.11 is one), with libFuzzer's options::

    pip install atheris scramp
    python3 fuzz/fuzz_popart.py -max_total_time=60
    python3 fuzz/fuzz_popart.py crash-0123456789             runs once more what was found

The references below share no code with the library, so that they cannot share its mistakes.
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["popart"]):
    import popart
    from popart.command_lines import MAX_AUTH_LINE, LineReader
    from popart.errors import BrokenMessageError
    from popart.message_framing import ShortMessageError, encode_message, frame_message
    from popart.replies import MAX_REPLY_LINE
    from popart.session import Session
    from popart.session_settings import SessionSettings

STATUS = re.compile(rb"(\+OK|-ERR)[ -~]*\r\n|\+ [A-Za-z0-9+/]*={0,2}\r\n")
LINES = re.compile(rb"((?!\.\r)[ -~]*\r\n)*\.\r\n")
WORDS = (
    b"USER a\r\nPASS b\r\n|USER |PASS |APOP a 0123456789abcdef0123456789abcdef\r\n|STAT\r\n|LIST\r\n|LIST |UIDL\r\n|"
    b"UIDL |RETR 1\r\n|RETR |TOP 1 1\r\n|TOP |DELE 1\r\n|DELE |RSET\r\n|NOOP\r\n|CAPA\r\n|QUIT|QUIT\r\n|\r\n|\n|\r| |"
    b"AUTH |AUTH\r\n|PLAIN |PLAIN\r\n|AGEAYg==\r\n|LOGIN\r\n|YQ==\r\n|XOAUTH2 |dXNlcj1hAWF1dGg9QmVhcmVyIGIBAQ==\r\n|"
    b"OAUTHBEARER |bixhPWEsAWF1dGg9QmVhcmVyIGIBAQ==\r\n|SCRAM-SHA-256 |biwsbj1hLHI9Yg==\r\n|EXTERNAL |=|*\r\n|"
    b"0|2|3|9|\0|\xff|" + b"x" * 1000
).split(b"|")
CREDENTIALS = popart.ScramCredentials(bytes(16), 4096, bytes(32), bytes(32))


def cut(octets: bytes, lengths: bytes) -> Iterator[bytes]:
    """Cut octets into pieces of these lengths, then one that is all the rest."""
    stream = io.BytesIO(octets)
    yield from filter(None, map(stream.read, lengths))
    yield stream.read()


def read_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    reader = LineReader()
    for piece in pieces:
        yield from reader.feed(piece)
        # The CRLF of a line that just fits may be on its way.
        assert all(len(held) <= MAX_AUTH_LINE + 1 for held in vars(reader).values() if isinstance(held, bytes))


def check_lines(pieces: list[bytes]) -> None:
    """Lines come out as they went in.  One that is too long is cut; that, and a TLS hello, come before their ends."""
    expected = [line.removesuffix(b"\r") for line in b"".join(pieces).split(b"\n")]
    unfinished = expected.pop()
    for line in read_lines(pieces):
        if line.startswith(b"\x16\x03"):
            return
        assert expected or len(line) > MAX_AUTH_LINE
        wanted = expected.pop(0) if expected else unfinished
        assert line == wanted[: MAX_AUTH_LINE + 1]
    assert not expected


def check_message(octets: bytes, lengths: bytes, top: int) -> None:
    """What a client decodes is the message with CRLF line ends, and TOP is the beginning of it; its size is known, and
    a message that should have one octet more is not given as whole.
    """
    normal = re.sub(rb"(?<!\r)\n", b"\r\n", octets)
    if normal and not normal.endswith(b"\r\n"):
        normal += b"\r\n"
    assert decode(encode_message(cut(octets, lengths), size=len(normal))) == normal
    for whole in (None, top):
        assert frame_message(octets, whole, len(normal)) + b".\r\n" == b"".join(encode_message([octets], whole))
    pieces = cut(octets, lengths)
    assert popart.wire_form(octets) == normal
    assert popart.wire_size(SimpleNamespace(read=lambda n: next(pieces, b""))) == len(normal)
    try:
        decode(encode_message(cut(octets, lengths), size=len(normal) + 1))
    except ShortMessageError as error:
        assert error.octets == len(normal)
    else:
        raise AssertionError("a message that is too short was given as whole")
    lines = normal.split(b"\r\n")[:-1]
    end = lines.index(b"") + 1 + top if b"" in lines else len(lines)
    assert decode(encode_message(cut(octets, lengths), top, len(normal))) == b"".join(
        line + b"\r\n" for line in lines[:end]
    )


def decode(pieces: Iterable[bytes]) -> bytes:
    """Read a message as a client does: up to the first line of one dot, which must be the end."""
    lines = b"".join(pieces).split(b"\r\n")
    assert lines[lines.index(b".") + 1 :] == [b""]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2])


def check_session(octets: bytes, lengths: bytes, message: bytes) -> None:
    """Each line has one well-formed reply, nothing is raised but for a message that is shorter than announced, locks
    are released, only QUIT deletes.
    """

    def authenticate(username: str, secret: object) -> None:
        if username != "a":
            raise popart.ReportableError(f"there is no {username}")

    calls: Counter[str] = Counter()
    errors: list[BaseException] = []
    handler = SimpleNamespace(
        authenticate_pass=authenticate,
        authenticate_apop=authenticate,
        authenticate_token=authenticate,
        authenticate_certificate=authenticate,
        get_scram_credentials=lambda username: CREDENTIALS,
        allow_sasl_login=True,
        lock_maildrop=lambda: calls.update(["lock"]),
        get_message_count=lambda: 2,
        get_message_size=lambda number: 0 if number == 1 else len(message) + 4,
        get_message_id=str,
        get_message_reader=lambda number: io.BytesIO(message),
        delete_messages=lambda numbers: calls.update(["delete"]),
        unlock_maildrop=lambda: calls.update(["unlock"]),
        handle_session_error=errors.append,
    )
    certificate = {"subject": ()}
    settings = SessionSettings("hello", "x", "0 USER", banner="<1.2@x>", certificate=certificate, max_bad_commands=50)
    session = Session(handler, settings)
    for line in read_lines(cut(octets, lengths)):
        reply = session.respond(line)
        head = reply.head()
        status = STATUS.match(head)
        assert status and status.end() <= MAX_REPLY_LINE
        if reply.lines is not None and line[:4].upper() in (b"RETR", b"TOP "):
            decode([head[status.end() :]])
        else:
            assert head == status[0] or LINES.fullmatch(head, status.end())
        if reply.message is not None:
            with closing(reply.message) as pieces:
                try:
                    decode(pieces)
                except BrokenMessageError as broken:
                    assert STATUS.fullmatch(broken.answer) and broken.answer.startswith(b"-ERR [SYS/PERM] ")
        assert not calls["delete"] or line.upper() in (b"QUIT", b"QUIT ")
        if session.over:
            break
    deletions = calls["delete"]
    session.close()
    assert calls["lock"] == calls["unlock"] and calls["delete"] == deletions <= 1
    assert all(isinstance(error, (popart.LimitError, popart.HandlerError)) for error in errors), errors


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    target = provider.ConsumeIntInRange(0, 3)
    top = provider.ConsumeIntInRange(0, 5)
    lengths = provider.ConsumeBytes(top * 2)
    message = provider.ConsumeBytes(top * 10)
    octets = provider.ConsumeBytes(10_000)
    if target == 0:
        # After the cuts, so that lines of a length that matters are cut too.
        check_lines([piece.replace(b"\xfe", b"x" * (MAX_AUTH_LINE - 3)) for piece in cut(octets[:40], lengths)])
    elif target == 1:
        check_message(octets, lengths, top)
    elif target == 2:
        check_session(octets, lengths, message)
    else:
        check_session(b"".join(WORDS[octet % len(WORDS)] for octet in octets), lengths, message)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
