"""What a client suffers when a method of a handler fails, and what to change."""

from __future__ import annotations

import re

from popart.testing.check.report import Report

_SIGN_IN = (
    "the client reads -ERR [SYS/TEMP] and is cut off, although only its name or password may be wrong",
    "Raise ReportableError for what you refuse, whatever name and password the client sent",
)
_LISTING = (
    "the client cannot open its maildrop, as one message that cannot be listed hides all the others",
    "List only what can be read; numbers count from 1",
)
_READING = (
    "the client cannot fetch the message, and most clients then fetch none of those that follow",
    "Open each message that is listed; numbers count from 1. If it is gone meanwhile, raise ReportableError",
)
_COROUTINE = (
    "its body never runs, and the client is answered -ERR",
    "Write a plain def, as popart has a thread for each client, and call asyncio.run(...) in it if you must",
)

_METHODS: dict[str, tuple[str, str]] = {
    "on_new_connection": (
        "the client is turned away with -ERR [SYS/TEMP]",
        "Make a new handler for each connection, and open what may fail later, at sign-in",
    ),
    "authenticate_pass": _SIGN_IN,
    "authenticate_apop": _SIGN_IN,
    "authenticate_token": _SIGN_IN,
    "get_scram_credentials": _SIGN_IN,
    "lock_maildrop": (
        "the client cannot open its maildrop",
        "Raise ReportableError if another session has the lock, and let nothing else fail",
    ),
    "list_messages": _LISTING,
    "get_message_count": _LISTING,
    "get_message_size": _LISTING,
    "get_message_id": (
        "UIDL is refused, and clients that leave mail on the server fetch nothing, or everything again",
        "Give each message an id",
    ),
    "get_message_reader": _READING,
    "get_top_reader": _READING,
    "read": (
        "the connection is reset in the middle of the message, and the client fetches it again and again",
        "See that a reader can give the whole message",
    ),
    "delete_messages": (
        "QUIT is answered -ERR, and the client believes that nothing was deleted and fetches everything again",
        "Delete the messages with the numbers that were given, counted from 1, and return None",
    ),
    "unlock_maildrop": (
        "QUIT is answered -ERR although the messages are deleted, and the maildrop may stay locked",
        "Release the lock that lock_maildrop took, once, and let nothing fail",
    ),
    "handle_session_error": (
        "nobody learns why a client lost its session, as popart drops what it raises",
        "Log the error in a way that cannot fail",
    ),
    "close": (
        "what the session holds may leak until no client can connect",
        "Let close work however the session ended, also if nobody signed in",
    ),
}

_RULES: list[tuple[str, str, str]] = [
    (
        r"ended after",
        "popart takes the message for one that was cut off, and no client can ever fetch it",
        "Announce popart.wire_size(message), and see that the reader neither ends early nor reads another message",
    ),
    (r"coroutine|async_generator", *_COROUTINE),
    (
        r"unique-id",
        "UIDL is refused, and clients that leave mail on the server fetch nothing, or everything again",
        "Give each message an id of its own, of 1 to 70 characters from '!' to '~', such as a hash",
    ),
    (
        r"reader of message|read returned",
        "the client cannot fetch the message",
        "Return an object whose read(n) returns bytes, and b'' at the end",
    ),
    (
        r"authenticate_|get_scram_credentials",
        "nobody can sign in, because any result other than None is an error",
        "Return None if the sign-in is right, and raise ReportableError if not",
    ),
    (
        r"delete_messages",
        "QUIT is answered -ERR although the messages may be deleted",
        "Return None once they are deleted, and raise if they are not",
    ),
    (r"size|count|list_messages", "the client cannot open its maildrop", "Return what the manual asks for"),
]

_BLOCKED = (
    "its client waits for an answer until it gives up, and the maildrop stays locked meanwhile",
    "Give what it waits for a timeout, and raise then, as popart cannot interrupt a handler",
)


def explain_raise(report: Report, method: str, error: BaseException) -> None:
    """Report what a method raised."""
    suffers, change = _METHODS.get(method, ("the client is answered -ERR [SYS/TEMP]", "Let it not fail"))
    report.add(f"{method} raised {show(error)}", suffers, change, kind=(method, type(error)))


def explain_result(report: Report, text: str) -> None:
    """Report a wrong result, in the words of a `popart.HandlerError`."""
    for pattern, suffers, change in _RULES:
        if re.search(pattern, text):
            kind = re.sub(r"\d+|'.*'", "", text)
            found = re.fullmatch(r"(message \d+) ended after (\d+) octets, its size was said to be (\d+)", text)
            what = f"LIST says {found[3]} octets of {found[1]}, and its reader gave {found[2]}" if found else text
            report.add(what, suffers, change, kind=kind)
            return
    report.add(text, "the client is answered -ERR", "Do what the manual asks for, in popart.handler", kind=text)


def explain_block(report: Report, method: str, seconds: float) -> None:
    """Report a method that does not return."""
    report.add(f"{method} has not returned within {seconds:g} seconds", *_BLOCKED, kind=method)


def explain_coroutine(report: Report, method: str) -> None:
    """Report a coroutine where popart does not complain of one."""
    suffers = "its body never runs, and nobody learns why a client lost its session"
    report.add(f"{method} is a coroutine function", suffers, _COROUTINE[1], kind=method)


def show(error: BaseException) -> str:
    """Return an exception as a traceback ends."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
