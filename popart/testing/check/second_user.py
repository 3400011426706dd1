"""The checks with a second user: neither has the other's mail, nor comes in by the other's secret."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from popart.testing.check.bench import Bench, Snapshot
from popart.testing.check.client import Credentials, StopError
from popart.testing.check.report import CheckError

_READ = 10
"""Messages of the second user that are read."""


def second_user(bench: Bench, other: Credentials) -> Credentials:
    """Return the second user, who signs in the same way as the first."""
    return replace(other, way=bench.credentials.way)


def look_alone(bench: Bench, other: Credentials) -> None:
    """See what mail the second user has while nobody else is there.

    :raises CheckError: the second user cannot sign in.
    """
    with bench.serving(), bench.visitor() as visitor:
        answer = visitor.sign_in(second_user(bench, other))
        if not answer.startswith("+OK"):
            raise CheckError(f"the check cannot sign in as {other.user}: {answer}")
        with suppress(StopError):  # what fails here is found with the first user
            bench.second = visitor.look_into(_READ)
        visitor.part()
    _expect_own(bench, other)
    known = set(bench.first.digests.values())
    if known.issuperset(bench.second.digests.values()):
        bench.report.note(
            f"{other.user} has no message that {bench.credentials.user} has not, so the check may not see that one "
            "reads the other's mail. Deliver other mail."
        )


def try_second_user(bench: Bench, other: Credentials) -> None:
    """Sign in as the second user while the first one has its maildrop open."""
    with bench.visitor() as visitor:
        answer = visitor.sign_in(second_user(bench, other))
        if not answer.startswith("+OK"):
            bench.report.add(
                f"A user cannot sign in while the maildrop of another user is open: the answer is {answer}",
                "users wait for each other, and one client that stays connected keeps all the others from their mail",
                "Take a lock of its own for each user",
            )
            visitor.part()
            return
        seen = visitor.look_into(_READ)
        visitor.part()
    first = bench.first
    if first.ids and seen.ids == first.ids and seen.digests.get(first.ids[0]) == first.digests.get(first.ids[0]):
        bench.report.add(
            "Two users see the same messages",
            "a user reads, and deletes, what belongs to another one",
            "List the messages of the user who has signed in",
        )
    else:
        _expect_same(bench, seen, "while another user has a maildrop open")


def check_second_maildrop(bench: Bench) -> None:
    """See that the deletions of the first user have left the second one's mail as it was."""
    other = bench.options.other
    if other is None or not bench.options.delete:
        return
    with bench.serving(), bench.visitor() as visitor:
        visitor.sign_in(second_user(bench, other))
        seen = visitor.look_into(_READ)
        visitor.part()
    _expect_same(bench, seen, "once another user has deleted messages")


def _expect_same(bench: Bench, seen: Snapshot, when: str) -> None:
    """See that the second user has what it had alone."""
    lost = [number for number, known in enumerate(bench.second.ids, 1) if known not in seen.ids]
    changed = bench.second.differing(seen)
    if lost or changed:
        what = "is gone" if lost else "has another content or size"
        bench.report.add(
            f"Message {(lost or changed)[0]} of a user {what} {when}",
            "a user reads, or deletes, what belongs to another one",
            "Find messages by the user and their ids, in lists and caches, readers and deletions",
            kind=when,
        )


def _expect_own(bench: Bench, other: Credentials) -> None:
    """See that the second user's readers are of its own listing.

    Both may have the same mail.  So a message of the first user's counts only if its size is right for the first user
    and wrong for the second.
    """
    first, second = bench.first, bench.second
    others = {first.digests[unique_id] for unique_id in first.exact}
    for number, unique_id in enumerate(second.ids, 1):
        if unique_id not in second.exact and second.digests.get(unique_id) in others:
            bench.report.add(
                f"Message {number} of {other.user} has the octets of a message of {bench.credentials.user}",
                "a user reads what belongs to another one",
                "Find messages by the user and their ids, in lists, caches and readers",
            )
