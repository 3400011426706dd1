"""The checks of the lock: it keeps others out, only them, and is released however a session ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from popart.testing.check.bench import Bench, Visitor
from popart.testing.check.client import Credentials
from popart.testing.check.second_user import look_alone, try_second_user

SILENCE = 0.5
"""Seconds after which a silent client is logged out, to see what happens then."""

_TWO_CLIENTS = "two clients fetch and delete at the same time, and one of them is told of messages that are gone"


def check_lock(bench: Bench) -> None:
    """Let other clients try while a session has the maildrop."""
    events, other = bench.report.events, bench.options.other
    if other is not None:
        look_alone(bench, other)
    with bench.serving(), bench.session() as holder:
        before = holder.read(1)
        is_steady = holder.read(1) == before  # check_reading has reported if not
        _try_second(bench)
        if not bench.has_lock:
            _explain_no_lock(bench, holder)
        else:
            expect_refusal(bench, "once a refused session is over")
        _try_strangers(bench)
        if other is not None:
            try_second_user(bench, other)
            expect_refusal(bench, "once the session of another user is over")
        else:
            bench.report.note("One user cannot show whether users share a lock, or mail: see --other.")
        if is_steady and holder.read(1) != before:
            bench.report.add(
                "A session reads another message than before, while another session tried to sign in",
                "one user reads, or deletes, what belongs to another one",
                "Keep what belongs to a session in the handler, and not in its class or module",
            )
        holder.quit()
    if bench.has_lock and bench.report.events == events:
        _release_late(bench)


def _try_second(bench: Bench) -> None:
    """Sign in as the user who has the maildrop open."""
    events = bench.report.events
    with bench.visitor() as second:
        answer = second.sign_in(bench.credentials)
        bench.has_lock = not answer.startswith("+OK")
        if bench.has_lock and not answer.startswith("-ERR [IN-USE]") and bench.report.events == events:
            wrong = "takes its password for wrong" if answer.startswith("-ERR [AUTH]") else "does not know what to do"
            bench.report.add(
                f"While a session has the maildrop, a second one {wrong}: it reads {answer}",
                "many programs ask the user for a new password then, or delete the account",
                "Look at the name and the password alone at sign-in, and raise ReportableError in lock_maildrop",
            )
        second.part()


def _explain_no_lock(bench: Bench, holder: Visitor) -> None:
    what = "A second session is let in while the first has the maildrop"
    assert holder.session is not None
    if bench.options.delete or not _does_nothing(holder.session.handler.unlock_maildrop):
        bench.report.add(
            what,
            _TWO_CLIENTS,
            "Take a lock in lock_maildrop, and raise ReportableError if another session has it",
        )
    else:
        bench.report.note(
            f"{what}. As unlock_maildrop does nothing, this seems to be intended. It is right only where nothing is "
            "ever deleted or changed: see lock_maildrop in the manual."
        )


def _does_nothing(method: Any) -> bool:
    """Return whether a method is ``...``, ``pass`` or a docstring: code without names and closures has no effect."""
    code = getattr(method, "__code__", None)
    return code is not None and not (code.co_names or code.co_freevars)


def expect_refusal(bench: Bench, when: str, suffers: str = _TWO_CLIENTS) -> None:
    """See that the lock still holds, if there is one."""
    if not bench.has_lock:
        return
    with bench.visitor() as visitor:
        if visitor.sign_in(bench.credentials).startswith("+OK"):
            bench.report.add(
                f"The lock of a session no longer keeps others out, {when}",
                suffers,
                "Release a lock once, in unlock_maildrop, and only if lock_maildrop of this very handler took it",
                kind=when,
            )
            bench.has_lock = False  # anything else that others can do without a lock is no separate fault
        visitor.part()


def _try_strangers(bench: Bench) -> None:
    """Try a name that nobody has, and the user's name written in other ways."""
    if bench.options.any_secret:
        return
    user = bench.credentials.user
    with bench.visitor() as visitor:
        visitor.sign_in(Credentials(f"nobody-{secrets.token_hex(4)}", secrets.token_hex(8), bench.credentials.way))
        visitor.part()
    _try_name(bench, user.swapcase(), "in another case")
    _try_name(bench, f"./{user}", "as a path")
    _try_name(bench, f"{user}/", "with a slash at its end")
    if bench.credentials.way == "PASS":  # the other ways do not all carry a blank there
        _try_name(bench, f"{user} ", "with a blank at its end")


def _try_name(bench: Bench, name: str, how: str) -> None:
    """Try the user's name written in another way."""
    if name == bench.credentials.user:
        return
    with bench.visitor() as visitor:
        if visitor.sign_in(replace(bench.credentials, user=name)).startswith("+OK"):
            same = set(visitor.listing("UIDL")) & set(bench.first.ids)
            if bench.has_lock or (bench.first.ids and not same):
                has = "the same maildrop without its lock" if same else "another maildrop"
                bench.report.add(
                    f"The user's name {how}, {name!r}, has {has}",
                    "a user who writes the name in another way finds no mail, or breaks into an open session",
                    "Take the name as it is stored, or look up all by the stored name once somebody has signed in",
                    kind=how,
                )
        visitor.part()


def _release_late(bench: Bench) -> None:
    """See what the end of a connection does when the next session has the lock already."""
    with bench.serving(), bench.session() as first:
        assert first.session is not None
        with first.session.held("close") as gate:
            first.ok("QUIT")
            with bench.session() as second:
                gate.opened.set()
                first.leave()
                expect_refusal(bench, "once the session before it is over: it was released twice")
                second.quit()


# The ends of a session.


def _end_by_quit(bench: Bench, visitor: Visitor) -> None:
    visitor.ok("RSET")
    visitor.quit()


def _end_by_eof(bench: Bench, visitor: Visitor) -> None:
    visitor.leave()


def _end_by_reset(bench: Bench, visitor: Visitor) -> None:
    if bench.first.sizes:
        visitor.send(f"RETR {len(bench.first.sizes)}")
    visitor.reset()
    visitor.leave()


def _end_by_silence(bench: Bench, visitor: Visitor) -> None:
    bench.log_out_after(SILENCE)
    visitor.ok("NOOP")
    visitor.wait_for_end()
    visitor.leave()


def _end_by_closing(bench: Bench, visitor: Visitor) -> None:
    bench.close_server()
    visitor.leave()


ENDS: dict[str, Callable[[Bench, Visitor], None]] = {
    "RSET and QUIT": _end_by_quit,
    "an end without QUIT": _end_by_eof,
    "a reset in the middle of a message": _end_by_reset,
    "a timeout": _end_by_silence,
    "the end of the server": _end_by_closing,
}
"""The ways in which a session can end without deleting anything."""


def check_ends(bench: Bench) -> None:
    """End a session in each way, and see that the next one can begin, and finds all the messages."""
    for name, end in ENDS.items():
        with bench.serving(), bench.session() as visitor:
            before = visitor.listing("LIST")
            if bench.options.delete and before:
                visitor.ok("DELE 1")
            end(bench, visitor)
        bench.last_end = name
        with bench.serving(), bench.session() as visitor:
            after = visitor.listing("LIST")
            if len(after) < len(before):
                bench.report.add(
                    f"A message {'which was marked ' if bench.options.delete else ''}is gone after {name}",
                    "mail is lost that the client may not have stored, or has not meant to delete",
                    "Delete only in delete_messages",
                )
            visitor.quit()
