"""Octets in, octets out: messages, command lines and status lines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, combinations_with_replacement, count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popart import command_lines, wire_form, wire_size
from popart.command_lines import LineReader
from popart.message_framing import ShortMessageError, encode_message
from popart.replies import cut, err, ok

# As stored, and as it stands on the wire before the final dot.
MESSAGES = {
    "CRLF": (b"A: b\r\n\r\nc\r\nd\r\n", b"A: b\r\n\r\nc\r\nd\r\n"),
    "LF": (b"A: b\n\nc\nd\n", b"A: b\r\n\r\nc\r\nd\r\n"),
    "mixed": (b"A: b\r\n\nc\n\r\nd\n", b"A: b\r\n\r\nc\r\n\r\nd\r\n"),
    "lone CR": (b"A: b\n\nc\rd\n", b"A: b\r\n\r\nc\rd\r\n"),
    "lone CR as a line": (b"A: b\n\n\r\r\nd\n", b"A: b\r\n\r\n\r\r\nd\r\n"),
    "LF CR": (b"a\n\rb\n\r", b"a\r\n\rb\r\n\r\r\n"),
    "CR CR LF": (b"A: b\r\r\n\r\r\n\r\nc\r\r\n", b"A: b\r\r\n\r\r\n\r\nc\r\r\n"),
    "no final newline": (b"A: b\n\nc", b"A: b\r\n\r\nc\r\n"),
    "ends with lone CR": (b"A: b\n\nc\r", b"A: b\r\n\r\nc\r\r\n"),
    "only CR": (b"\r", b"\r\r\n"),
    "only LF": (b"\n", b"\r\n"),
    "empty": (b"", b""),
    "headers only": (b"A: b\nC: d\n", b"A: b\r\nC: d\r\n"),
    "headers only, no newline": (b"A: b\nC: d", b"A: b\r\nC: d\r\n"),
    "headers and blank line": (b"A: b\n\n", b"A: b\r\n\r\n"),
    "no headers": (b"\nc\nd\n", b"\r\nc\r\nd\r\n"),
    "only blank lines": (b"\n\n\r\n\n", b"\r\n\r\n\r\n\r\n"),
    "first octet a dot": (b".a\n\nb\n", b"..a\r\n\r\nb\r\n"),
    "only a dot": (b".", b"..\r\n"),
    "lines of dots": (b"a\n\n.\n..\r\n...\n.b\n", b"a\r\n\r\n..\r\n...\r\n....\r\n..b\r\n"),
    "a dot at the end": (b"a\n\n.", b"a\r\n\r\n..\r\n"),
    "dots within lines": (b"a.b\r.c\n\nd.\n", b"a.b\r.c\r\n\r\nd.\r\n"),
    "final dot as text": (b"a\r\n\r\n.\r\n+OK\r\n", b"a\r\n\r\n..\r\n+OK\r\n"),
    "NULs": (b"\0\n\n\0\r\0\n", b"\0\r\n\r\n\0\r\0\r\n"),
    "8-bit": (b"\xff\x85\n\n\xe2\x80\xa8\xc2\x85\n", b"\xff\x85\r\n\r\n\xe2\x80\xa8\xc2\x85\r\n"),
    "other separators": (b"\v\f\x1c\n\n\x1d\x1e\n", b"\v\f\x1c\r\n\r\n\x1d\x1e\r\n"),
}

messages = pytest.mark.parametrize(("stored", "sent"), MESSAGES.values(), ids=MESSAGES.keys())

LONGEST_FOR_THREE = 20

LONGEST = 12_288
"""Octets of the longest line that any command takes."""


def cuttings(octets: bytes) -> Iterator[list[bytes]]:
    """Cut octets in every way into two and, short ones, into three; also not at all, and into single octets."""
    yield [octets]
    yield [octets[i : i + 1] for i in range(len(octets))]
    cuts = 2 if len(octets) <= LONGEST_FOR_THREE else 1
    for places in combinations_with_replacement(range(len(octets) + 1), cuts):
        yield [octets[i:j] for i, j in zip((0, *places), (*places, len(octets)), strict=True)]


def with_crlf(stored: bytes) -> bytes:
    """Give a message CRLF line ends, independently of the library."""
    octets = re.sub(rb"\r?\n", b"\r\n", stored)
    return octets if octets.endswith(b"\r\n") or not octets else octets + b"\r\n"


def stuffed(octets: bytes) -> bytes:
    """Turn a message with CRLF line ends into a multi-line reply's lines, independently of the library."""
    return re.sub(rb"(?m)^\.", b"..", octets) + b".\r\n"


def top_of(octets: bytes, number: int) -> bytes:
    """Cut a message with CRLF line ends to header, blank line and some lines of the body."""
    lines = re.findall(rb"[^\n]*\n", octets)
    header = lines.index(b"\r\n") + 1 if b"\r\n" in lines else len(lines)
    return b"".join(lines[: header + number])


def read_reply(octets: bytes) -> bytes:
    """Read the lines of a multi-line reply as RFC 1939 section 3 tells a client to."""
    *lines, last = re.findall(rb".*?\r\n", octets, re.DOTALL)
    assert last == b".\r\n" and b".\r\n" not in lines and b"".join(lines) + last == octets
    return b"".join(line.removeprefix(b".") for line in lines)


class TestMessage:
    @messages
    def test_every_cut(self, stored: bytes, sent: bytes) -> None:
        """A message leaves as CRLF lines, dot-stuffed from its first octet, wherever it is cut (RFC 1939 section 3)."""
        assert stuffed(with_crlf(stored)) == sent + b".\r\n"
        for chunks in cuttings(stored):
            assert b"".join(encode_message(chunks)) == sent + b".\r\n", chunks

    @given(st.lists(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a"])).map(b"".join)))
    @settings(max_examples=250, database=None)
    def test_any_chunks(self, chunks: list[bytes]) -> None:
        """What a client reads is the message with CRLF line ends; the final dot never travels without the line end
        before it, but where there is none.
        """
        stored = b"".join(chunks)
        pieces = list(encode_message(chunks))
        assert read_reply(b"".join(pieces)) == with_crlf(stored)
        assert len(pieces[-1]) >= 5 or not stored
        assert all(pieces)

    def test_ten_megabytes(self) -> None:
        """A line of 10 MB arrives whole, in pieces no larger than what the reader returned."""
        pieces = list(encode_message([b"x" * 65_536] * 160))
        assert b"".join(pieces) == b"x" * (65_536 * 160) + b"\r\n.\r\n"
        assert max(map(len, pieces)) <= 65_536 + 8

    @pytest.mark.parametrize("octets", [b"\r", b"\0", b".", b"\n", b"\n.", b".\n", b"\r\n"], ids=ascii)
    def test_growth_is_bounded(self, octets: bytes) -> None:
        """Even where every octet needs another beside it, a piece is at most twice as large as its chunk."""
        chunk = octets * (4096 // len(octets))
        pieces = list(encode_message([chunk] * 4))
        assert b"".join(pieces) == stuffed(with_crlf(chunk * 4))
        assert max(map(len, pieces)) <= 2 * 4096 + 8

    def test_pieces_come_as_the_message_is_read(self) -> None:
        """No more than two chunks are ever held: memory stays flat whatever the message's size."""
        taken = count()
        pieces = encode_message(b"a" * 10 for _ in taken)
        for _ in range(100):
            assert next(pieces) == b"a" * 10
        assert next(taken) <= 102


class TestTop:
    @messages
    @pytest.mark.parametrize("number", [0, 1, 2, 3, 99_999_999])
    def test_every_cut(self, stored: bytes, sent: bytes, number: int) -> None:
        """TOP is the header, the blank line and n lines of the body, all when n is larger (RFC 1939 section 7)."""
        expected = stuffed(top_of(with_crlf(stored), number))
        for chunks in cuttings(stored):
            assert b"".join(encode_message(chunks, number)) == expected, chunks
        if number == 99_999_999:
            assert expected == sent + b".\r\n"

    @pytest.mark.parametrize(
        ("stored", "number", "sent"),
        [
            (b"A: b\n\nc\n\nd\n", 0, b"A: b\r\n\r\n.\r\n"),
            (b"A: b\n\nc\n\nd\n", 1, b"A: b\r\n\r\nc\r\n.\r\n"),
            (b"A: b\n\nc\n\nd\n", 2, b"A: b\r\n\r\nc\r\n\r\n.\r\n"),
            (b"A: b\n\nc\n\nd", 3, b"A: b\r\n\r\nc\r\n\r\nd\r\n.\r\n"),
            (b"\nc\nd\n", 0, b"\r\n.\r\n"),
            (b"\nc\nd\n", 1, b"\r\nc\r\n.\r\n"),
            (b"A: b\nC: d\n", 0, b"A: b\r\nC: d\r\n.\r\n"),
            (b"A: b\n\r\r\n\n.c\n", 0, b"A: b\r\n\r\r\n\r\n.\r\n"),
            (b"A: b\n\r\r\n\n.c\n", 1, b"A: b\r\n\r\r\n\r\n..c\r\n.\r\n"),
            (b"", 0, b".\r\n"),
        ],
        ids=ascii,
    )
    def test_by_hand(self, stored: bytes, number: int, sent: bytes) -> None:
        """TOP n 0 is exactly the header and the blank line; a message without a blank line is all header."""
        for chunks in cuttings(stored):
            assert b"".join(encode_message(chunks, number)) == sent, chunks

    @given(
        st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"\n\n", b".", b"a"])).map(b"".join)),
        st.integers(0, 5),
    )
    @settings(max_examples=250, database=None)
    def test_any_chunks(self, chunks: list[bytes], number: int) -> None:
        """The same for any message in any chunks, and no final dot travels without the line end before it."""
        pieces = list(encode_message(chunks, number))
        assert read_reply(b"".join(pieces)) == top_of(with_crlf(b"".join(chunks)), number)
        assert len(pieces[-1]) >= 5 or not b"".join(chunks)

    @pytest.mark.parametrize(
        ("chunks", "number", "needed"),
        [
            ([b"A: b\n\n", b"c\n", b"d\n", b"e\n"], 0, 1),
            ([b"A: b\n\n", b"c\n", b"d\n", b"e\n"], 1, 2),
            ([b"A: b\n\n", b"c\n", b"d\n", b"e\n"], 2, 3),
            ([b"A: b\n\nc\nd\ne", b"f"], 2, 1),
            ([b"\n", b"c\n"], 0, 1),
            ([b"A: b\n", b"\n", b"c", b"\n", b"d\n"], 1, 4),
        ],
        ids=ascii,
    )
    def test_reads_no_more_than_it_needs(self, chunks: list[bytes], number: int, needed: int) -> None:
        """Once the lines are complete nothing more is asked of the reader: the message may be a gigabyte."""
        taken: list[bytes] = []

        def read() -> Iterator[bytes]:
            for chunk in chunks:
                taken.append(chunk)
                yield chunk

        list(encode_message(read(), number))
        assert len(taken) == needed


class TestShortMessage:
    """A message whose chunks end before its size is not given as whole."""

    @messages
    def test_every_cut(self, stored: bytes, sent: bytes) -> None:
        """The size is that of the message with CRLF line ends, before dot-stuffing, wherever it is cut."""
        size = len(with_crlf(stored))
        for chunks in cuttings(stored):
            assert b"".join(encode_message(chunks, size=size)) == sent + b".\r\n"
            with pytest.raises(ShortMessageError) as short:
                list(encode_message(chunks, size=size + 1))
            assert short.value.octets == size

    @given(
        st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"\n\n", b".", b"a"])).map(b"".join)),
        st.none() | st.integers(0, 5),
        st.integers(-3, 3),
    )
    @settings(max_examples=500, database=None)
    def test_any_chunks(self, chunks: list[bytes], top: int | None, more: int) -> None:
        """What is too small, or was not read to its end, is as without a size; all else fails before its final dot."""
        stored = b"".join(chunks)
        complete = re.findall(rb"[^\n]*\n", stored)
        header = next((n for n, line in enumerate(complete, 1) if line in (b"\n", b"\r\n")), len(complete) + 1)
        read_to_the_end = top is None or len(complete) < header + top
        pieces = []
        try:
            for piece in encode_message(chunks, top, max(0, len(with_crlf(stored)) + more)):
                pieces.append(piece)
        except ShortMessageError as error:
            assert more > 0 and read_to_the_end and error.octets == len(with_crlf(stored))
            assert b"\n.\r\n" not in b"".join(pieces)[-4:]
        else:
            assert more <= 0 or not read_to_the_end
            assert pieces == list(encode_message(chunks, top))

    def test_nothing_is_copied(self) -> None:
        """To count costs no memory: the pieces are those that come without a size."""
        chunk = b"x" * 65_534 + b"\r\n"
        assert all(piece is chunk for piece in list(encode_message([chunk] * 3, size=3 * 65_536))[:-1])


class Dripping:
    """A reader that cannot be closed twice, and returns few octets at a time."""

    def __init__(self, octets: bytes, most: int) -> None:
        self.file = io.BytesIO(octets)
        self.most = most

    def read(self, n: int, /) -> bytes:
        return self.file.read(min(n, self.most))

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")


class Returning:
    """A reader of one result."""

    def __init__(self, result: object) -> None:
        self.result = result

    def read(self, n: int, /) -> Any:
        return self.result


class TestSizes:
    """The public functions that tell what goes over the wire."""

    @messages
    def test_form_and_size(self, stored: bytes, sent: bytes) -> None:
        """wire_form is the message before dot-stuffing, and wire_size its length, of octets or of any reader."""
        form = re.sub(rb"(?m)^\.", b"", sent)
        assert wire_form(stored) == form == wire_form(form)
        assert wire_size(stored) == wire_size(form) == len(form)
        for most in (1, 2, 3, 1_000_000):
            assert wire_size(Dripping(stored, most)) == len(form)

    def test_mail_that_has_crlf_already(self) -> None:
        """Line ends that are CRLF are counted once."""
        assert wire_size(b"A: b\r\n\r\nx\r\n") == 11
        assert wire_size(b"A: b\n\nx") == 11

    def test_reader_stays_open(self) -> None:
        """A reader is read from where it stands to its end, and left open."""
        with io.BytesIO(b"skipped\nA: b\n") as file:
            file.readline()
            assert wire_size(file) == 6
            assert not file.closed and file.read() == b""

    def test_memory_is_flat(self) -> None:
        """50 MB are counted in pieces, whether they come from a reader or are octets."""

        class Endless:
            left = 800

            def read(self, n: int, /) -> bytes:
                self.left -= 1
                return b"\n" * 65_536 if self.left >= 0 else b""

        octets = b"\n" * 10_000_000
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
        tracemalloc.start()
        try:
            assert wire_size(Endless()) == 2 * 800 * 65_536
            assert wire_size(octets) == 20_000_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000

    @pytest.mark.parametrize("message", ["text", None, 5, bytearray(b"x"), memoryview(b"x"), [b"x"], object()])
    def test_neither_octets_nor_a_reader(self, message: Any) -> None:
        """What is no message is a TypeError that names its type, and never counted as one."""
        with pytest.raises(TypeError, match=r"bytes.*not"):
            wire_size(message)
        with pytest.raises(TypeError, match=r"bytes.*not"):
            wire_form(message)

    @pytest.mark.parametrize("result", ["", "text", None, 0, bytearray(), [b"x"]], ids=ascii)
    def test_reader_of_something_else(self, result: object) -> None:
        """A reader of text, or one that has nothing to read at the moment, is a TypeError too."""
        with pytest.raises(TypeError, match=rf"returned {type(result).__name__}, not bytes"):
            wire_size(Returning(result))

    def test_reader_that_fails(self) -> None:
        """What a reader raises is the caller's to handle, and never its end."""

        class Failing:
            def read(self, n: int, /) -> bytes:
                raise StopIteration("not an end")

        with pytest.raises(RuntimeError, match="StopIteration"):
            wire_size(Failing())


class TestCut:
    @given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 30), st.integers(5, 24))
    @settings(max_examples=1000, database=None)
    def test_any_replies(self, lengths: list[int], begun: int, size: int) -> None:
        """Pieces are whole and small enough; of no reply fewer than five octets come last, unless it has no more."""
        ends = list(accumulate(lengths))
        octets = bytes(number % 251 for number in range(sum(lengths) + begun))
        pieces = list(cut(octets, ends, size))
        assert b"".join(pieces) == octets
        assert all(1 <= len(piece) <= size for piece in pieces)
        cuts = list(accumulate(map(len, pieces)))[:-1]
        for start, end in pairwise([0, *ends]):
            assert not [place for place in cuts if start < place < end and end - place < 5]

    @given(st.integers(1, 200), st.integers(5, 24))
    @settings(max_examples=200, database=None)
    def test_pieces_are_as_large_as_they_may_be(self, length: int, size: int) -> None:
        """A piece is smaller than it may be by four octets at most, but for the last."""
        *pieces, _ = cut(bytes(length), [length], size)
        assert all(len(piece) >= size - 4 for piece in pieces)

    @pytest.mark.parametrize("length", [16_384 * 2 + excess for excess in range(-2, 7)])
    def test_records(self, length: int) -> None:
        """No record of TLS holds one to four octets of a reply's end."""
        assert all(len(piece) >= 5 for piece in cut(bytes(length), [length], 16_384))

    def test_challenge_comes_whole(self) -> None:
        """A reply of fewer than five octets is never divided."""
        assert [bytes(piece) for piece in cut(b"12345678+ \r\n1234", [8, 12], 10)] == [b"12345678", b"+ \r\n1234"]

    def test_nothing(self) -> None:
        """Where there is nothing to send there is no piece."""
        assert list(cut(b"", [], 5)) == list(cut(b"", [0, 0], 5)) == []


def lines_of(pieces: Iterable[bytes]) -> list[bytes]:
    """Feed a LineReader as a connection does and return all lines that come out."""
    reader = LineReader()
    return [line for piece in pieces for line in reader.feed(piece)]


class TestLineReader:
    @pytest.mark.parametrize(
        ("octets", "lines"),
        [
            (b"", []),
            (b"NOOP\r\n", [b"NOOP"]),
            (b"NOOP\n", [b"NOOP"]),
            (b"NOOP\nSTAT\r\nQUIT\n", [b"NOOP", b"STAT", b"QUIT"]),
            (b"\r\n", [b""]),
            (b"\n\n\r\n", [b"", b"", b""]),
            (b"QUIT", []),
            (b"QUIT\r", []),
            (b"NOOP\r\nQUIT\r", [b"NOOP"]),
            (b"NO\rOP\r\n", [b"NO\rOP"]),
            (b"NOOP\rQUIT\r\r\n", [b"NOOP\rQUIT\r"]),
            (b"\rNOOP\n", [b"\rNOOP"]),
            (b"NO\0OP\r\n\0\n", [b"NO\0OP", b"\0"]),
            (b"PASS  a \xff\r\n", [b"PASS  a \xff"]),
            (b"A\vB\fC\x1cD\x85E\xe2\x80\xa8F\n", [b"A\vB\fC\x1cD\x85E\xe2\x80\xa8F"]),
            (b"\x16\r\n\x03\n", [b"\x16", b"\x03"]),
        ],
        ids=ascii,
    )
    def test_every_cut(self, octets: bytes, lines: list[bytes]) -> None:
        """CRLF or LF ends a line, a lone CR does not, and the cuts of the network mean nothing."""
        for pieces in cuttings(octets):
            assert lines_of(pieces) == lines, pieces

    @given(st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"a", b"aaa"])).map(b"".join)))
    @settings(max_examples=250, database=None)
    def test_any_cut_around_the_limit(self, pieces: list[bytes]) -> None:
        """An over-long line comes out once, cut to one octet more than the limit, and all others come out whole."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command_lines, "MAX_AUTH_LINE", 4)
            lines = lines_of([*pieces, b"\n"])
        expected = re.findall(rb"([^\n]*?)\r?\n", b"".join(pieces) + b"\n")
        assert lines == [line[:5] for line in expected]

    @pytest.mark.parametrize("size", [LONGEST - 1, LONGEST, LONGEST + 1, 100_000])
    @pytest.mark.parametrize("piece", [1, 4096, 1_000_000])
    @pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
    def test_long_line(self, size: int, piece: int, end: bytes) -> None:
        """A line beyond the limit is returned once, cut; its tail never runs and the next line is intact."""
        octets = b"x" * size + end + b"NOOP\r\n"
        lines = lines_of(octets[i : i + piece] for i in range(0, len(octets), piece))
        assert lines == [b"x" * min(size, LONGEST + 1), b"NOOP"]

    def test_long_line_is_answered_before_it_ends(self) -> None:
        """The refusal does not wait for a line end that may never come."""
        for end in (b"\r", b"x"):
            reader = LineReader()
            assert reader.feed(b"x" * LONGEST + end) == []  # a CR may yet be that of a line end
            assert reader.feed(b"x") == [b"x" * LONGEST + end]
        reader = LineReader()
        assert reader.feed(b"x" * (LONGEST + 10)) == [b"x" * (LONGEST + 1)]
        assert reader.feed(b"QUIT\r") == []

    def test_lone_cr_at_the_limit(self) -> None:
        """A line that is too long is not taken for a shorter one because a lone CR stands where it is cut."""
        lines = lines_of([b"x" * LONGEST + b"\r", b"QUIT\r\nNOOP\r\n"])
        assert len(lines[0]) > LONGEST
        assert lines[1:] == [b"NOOP"]

    def test_memory_is_bounded(self) -> None:
        """10 MB without a line end leave nothing behind (no client can stop another by volume, promise 4)."""
        reader = LineReader()
        piece = b"x" * 4096
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
        tracemalloc.start()
        try:
            for _ in range(2500):
                reader.feed(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * LONGEST

    def test_tls_hello_comes_at_once(self) -> None:
        """A TLS client that speaks to the plain port waits for an answer and never ends its line."""
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        for i in range(len(hello)):
            lines = lines_of([hello[:i], hello[i:]])
            assert len(lines) == 1 and lines[0].startswith(b"\x16\x03")


class TestStatusLine:
    @pytest.mark.parametrize(
        ("text", "code", "line"),
        [
            ("done", None, b"-ERR done\r\n"),
            ("done", "SYS/TEMP", b"-ERR [SYS/TEMP] done\r\n"),
            ("no\r\n+OK yes", None, b"-ERR no  +OK yes\r\n"),
            ("no\r\n+OK yes", "AUTH", b"-ERR [AUTH] no  +OK yes\r\n"),
            ("a\0b\tc\x1bd\x7fe\nf\rg", None, b"-ERR a b c d e f g\r\n"),
            ("a\x01b\x1e\x1f\x20!c~\x7f", None, b"-ERR a b   !c~ \r\n"),
            ("caf\xe9 \u2028 \U0001f4a5", None, b"-ERR caf? ? ?\r\n"),
            ("\x85\ud800\udcff", None, b"-ERR ???\r\n"),
            ("[AUTH] a lie", None, b"-ERR AUTH] a lie\r\n"),
            (" [[ [x", None, b"-ERR x\r\n"),
            ("\r[x", None, b"-ERR x\r\n"),
            ("a [b]", None, b"-ERR a [b]\r\n"),
            ("[b]", "AUTH", b"-ERR [AUTH] [b]\r\n"),
            ("X [b]", None, b"-ERR X [b]\r\n"),
        ],
        ids=ascii,
    )
    def test_text(self, text: str, code: str | None, line: bytes) -> None:
        """Any text becomes one line of ASCII; only a code begins with a bracket (RFC 2449 section 6.4)."""
        assert err(text, code).head() == line

    @pytest.mark.parametrize("text", ["", "\r\n", "["], ids=ascii)
    def test_no_text(self, text: str) -> None:
        """A reply without a text is still a reply."""
        assert err(text).head() in (b"-ERR\r\n", b"-ERR \r\n")

    @pytest.mark.parametrize("size", [505, 506, 507, 508, 600, 100_000])
    @pytest.mark.parametrize("code", [None, "SYS/PERM", "x" * 64])
    @pytest.mark.parametrize("character", ["x", "\n", "\u20ac"], ids=ascii)
    def test_length(self, size: int, code: str | None, character: str) -> None:
        """A reply's first line has 512 octets at most, its CRLF included (RFC 1939 section 3)."""
        line = err("x" + character * (size - 1), code).head()
        prefix = 5 if code is None else 8 + len(code)
        assert len(line) == min(512, prefix + size + 2)
        assert line.index(b"\r\n") == len(line) - 2


def test_head_ends_with_the_dot() -> None:
    """A reply of lines ends with the dot, also when there are none; a reply of one line has no dot (RFC 1939 3)."""
    assert ok("listing follows").head() == b"+OK listing follows\r\n"
    assert ok("listing follows", b"").head() == b"+OK listing follows\r\n.\r\n"
    assert ok("listing follows", b"1 120\r\n").head() == b"+OK listing follows\r\n1 120\r\n.\r\n"
