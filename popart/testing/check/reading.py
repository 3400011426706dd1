"""The checks of what a client reads: listings, messages and their beginnings, in one session and in a second one."""

from __future__ import annotations

from dataclasses import replace

from popart.testing.check.bench import Bench, Visitor, digest
from popart.testing.check.client import StopError, choose_way
from popart.testing.check.report import CheckError, count, in_brackets

SAMPLE = 10
"""Messages that are checked more closely than the others."""

MANY = 500
"""Lines of a long message that TOP is asked for."""

PIECES = 20
"""Pieces in which a long message is read.  More would take long where each call does."""

WHOLE = 99_999_999
"""Lines.  Some clients fetch messages by TOP with this number."""


def check_reading(bench: Bench) -> None:
    """Read the whole maildrop, and see whether LIST, UIDL, RETR and TOP agree."""
    with bench.serving():
        with bench.visitor() as visitor:
            bench.takes_user, bench.mechanisms = visitor.offers()
        options = bench.options
        way = choose_way(bench.takes_user, bench.mechanisms, token=options.is_token, apop=options.apop)
        bench.credentials = replace(bench.credentials, way=way)
        _sign_in_first(bench)
        if bench.stopped:
            return
        number = 1
        while number <= len(bench.first.sizes):
            with bench.session() as visitor:
                number = _read_from(bench, visitor, number)
                visitor.part()
        if small := bench.small_sizes:
            bench.report.note(
                f"LIST says less than it takes to send {count(small, 'message')}. That is harmless for clients, but "
                "popart cannot see if such a message was cut off: see popart.wire_size."
            )


def _sign_in_first(bench: Bench) -> None:
    """Sign in, and list the maildrop.

    :raises CheckError: the sign-in is refused, and the handler is not to blame.
    """
    events = bench.report.events
    with bench.visitor() as visitor:
        answer = visitor.sign_in(bench.credentials)
        if not answer.startswith("+OK"):
            if bench.report.events == events:
                raise CheckError(f"the check cannot sign in as {bench.credentials.user}: {answer}")
            bench.stopped = True
            return
        bench.first.sizes = visitor.listing("LIST")
        total = len(bench.first.sizes)
        if total < 2:
            missing = "no message could" if total == 0 else "that two messages differ in number and unique-id could not"
            has = f"The maildrop has {count(total, 'message')}"
            bench.report.note(f"{has}: {missing} be checked. Deliver three or more.")
        try:
            bench.first.ids = visitor.listing("UIDL")
        except StopError:
            if bench.report.events == events:
                raise
        visitor.quit()
    _note_numbers(bench)


def _note_numbers(bench: Bench) -> None:
    """Say if the ids may be made from the numbers."""
    ids = bench.first.ids
    prefixes = {unique_id.removesuffix(f"{number}") for number, unique_id in enumerate(ids, 1)}
    if len(ids) > 1 and len(prefixes) == 1 and not bench.options.delete:
        bench.report.note(
            f"Each unique-id ends with the message's number, such as {ids[-1]}. If it is made from the number, it "
            "moves to another message when one is deleted, and clients lose mail. Only a check with deletion can tell."
        )


def _read_from(bench: Bench, visitor: Visitor, number: int) -> int:
    """Read the messages from *number* on, and return the number of the next one, where a session has ended."""
    sizes = visitor.listing("LIST")
    ids = visitor.listing("UIDL") if bench.first.ids else [""] * len(sizes)
    for index in range(number - 1, len(sizes)):
        if bench.is_late:
            bench.report.note(f"Only {index} of {len(sizes)} messages have been read: it took too long.")
            break
        if not _read_message(bench, visitor, index + 1, sizes[index], ids[index]):
            return index + 2
    return len(bench.first.sizes) + 1


def _read_message(bench: Bench, visitor: Visitor, number: int, size: str, unique_id: str) -> bool:
    """Read one message, and return whether the session goes on."""
    events = bench.report.events
    try:
        message = visitor.data(f"RETR {number}")
        if number <= SAMPLE and _read_again(bench, visitor, number) != message:
            bench.report.add(
                f"RETR {number} gave another message the second time",
                "a client that tries again, or that read the beginning by TOP, gets a part of the message or nothing",
                "Open a reader of its own for each call of get_message_reader, at the beginning of the message",
            )
            return visitor.is_answered("NOOP")
        bench.first.add(unique_id, size, message)
        bench.small_sizes += int(size) < len(message)
        for lines in _numbers_of_lines(message) if number <= SAMPLE else (0, WHOLE):
            if visitor.data(f"TOP {number} {lines}") != top(message, lines):
                bench.report.add(
                    f"TOP {number} {lines} differs from RETR {number}",
                    "clients that show headers first, or fetch by TOP, get a message with parts missing or double",
                    "Let get_top_reader give the header, the blank line and the first lines, or more",
                    kind=lines if lines in (0, 1, WHOLE) else "some",
                )
    except StopError as stop:
        if bench.report.events == events:
            bench.report.add(
                f"{stop}",
                "a client cannot fetch a message that is listed, and most clients then fetch none that follow",
                "List only messages that can be read",
            )
        return visitor.is_answered("NOOP")
    return True


def _numbers_of_lines(message: bytes) -> list[int]:
    """Return the numbers of lines to ask TOP for.  One is nearly all of the message, or more than a screen has."""
    body = message.count(b"\r\n") - top(message, 0).count(b"\r\n")
    return sorted({0, 1, max(1, min(body - 1, MANY)), WHOLE})


def _read_again(bench: Bench, visitor: Visitor, number: int) -> bytes:
    """Read a message a second time.  If that fails, only the fact is reported, not why."""
    with bench.recorder.excusing():
        try:
            return visitor.data(f"RETR {number}")
        except StopError as stop:
            return f"{stop}".encode()


def top(message: bytes, lines: int) -> bytes:
    """Return the header, the blank line and the first *lines* lines of the body (RFC 1939 section 7)."""
    end = 0
    while (line_end := message.find(b"\r\n", end)) >= 0:
        is_blank, end = line_end == end, line_end + 2
        if is_blank:
            break
    for _ in range(lines):
        line_end = message.find(b"\r\n", end)
        if line_end == -1:
            return message
        end = line_end + 2
    return message[:end]


def check_again(bench: Bench) -> None:
    """See whether a second session sees the same maildrop."""
    first = bench.first
    with bench.serving(), bench.session() as visitor:
        if not first.ids:
            return
        now = visitor.look()
        where = {unique_id: number for number, unique_id in enumerate(now.ids, 1)}
        missing = [unique_id for unique_id in first.ids if unique_id not in where]
        if missing and len(now.ids) < len(first.ids):
            bench.report.add(
                f"{len(first.ids) - len(now.ids)} of {len(first.ids)} messages vanished, although no client said DELE",
                "mail is lost whenever a client that is cut off has not stored it",
                "Delete only in delete_messages",
            )
        elif missing:
            bench.report.add(
                f"{count(len(missing), 'message')} changed their unique-ids: a second session has other unique-ids",
                "clients that leave mail on the server fetch all of it again, each time",
                "Store an id with each message, or make it from what never changes",
            )
        for number, unique_id in enumerate(first.ids, 1):
            if unique_id in where and now.sizes[where[unique_id] - 1] != first.sizes[number - 1]:
                bench.report.add(
                    f"Message {number} has other sizes in a second session",
                    "a client takes the message for damaged, or for another one",
                    "Measure a message once, when it is stored",
                )
        _compare_messages(bench, visitor, where)
        visitor.quit()


def _compare_messages(bench: Bench, visitor: Visitor, where: dict[str, int]) -> None:
    """Read a sample of the messages, and those that are new, if not too many."""
    first = bench.first
    for unique_id in [unique_id for unique_id in first.digests if unique_id in where][:SAMPLE]:
        if bench.is_late:
            return
        if digest(visitor.data(f"RETR {where[unique_id]}")) != first.digests[unique_id]:
            bench.report.add(
                f"Messages have ids of other messages in a second session, such as {unique_id}",
                "clients that leave mail on the server take new mail for what they have, and never fetch it",
                "Keep the id with the message; in a listing and in a reader, a number must mean the same message",
            )
    known = set(first.ids)
    new = [unique_id for unique_id in where if unique_id not in known]
    copies = [unique_id for unique_id in new[:SAMPLE] if _is_known(bench, visitor, where[unique_id])]
    # Mail may have come meanwhile, and some may be copies of what was there.
    if known <= where.keys() and len(new) >= len(known) and len(copies) == len(new[:SAMPLE]):
        bench.report.add(
            f"Messages are listed twice, or more often, in a second session: it has {len(where)}, the first "
            f"{len(first.ids)}",
            "a client fetches the same mail again and again",
            "Keep what a session has listed in the handler, and not in its class or module",
        )


def _is_known(bench: Bench, visitor: Visitor, number: int) -> bool:
    return digest(visitor.data(f"RETR {number}")) in bench.first.digests.values()


def check_pieces(bench: Bench) -> None:
    """Read messages in small pieces, and break off."""
    recorder = bench.recorder
    with bench.serving(), bench.session() as visitor:
        for number in range(1, len(visitor.listing("LIST")[:SAMPLE]) + 1):
            if bench.is_late:
                break
            try:
                whole = visitor.data(f"RETR {number}")
                visitor.data(f"TOP {number} 0")
            except StopError:
                return  # check_reading has reported it
            with recorder.excusing() as failures:
                recorder.piece = max(7, len(whole) // PIECES)
                try:
                    pieces = visitor.data(f"RETR {number}")
                    visitor.data(f"TOP {number} 0")
                except StopError as stop:
                    pieces = f"{stop}".encode()
                finally:
                    recorder.piece = None
            if pieces != whole or failures:
                bench.report.add(
                    f"Message {number} read in small pieces is not what it is when it is read at once"
                    f"{in_brackets(failures)}",
                    "a client gets a damaged message as soon as messages are long, or memory is short",
                    "Let read(n) return the octets that follow those of the last call, n at most, and let close work "
                    "at any time",
                )
                return
        visitor.quit()
