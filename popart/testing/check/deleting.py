"""The checks that delete: exactly what was marked, at QUIT, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popart.testing.check.bench import Bench, Snapshot, Visitor
from popart.testing.check.client import StopError
from popart.testing.check.locking import expect_refusal
from popart.testing.check.report import count

_TRIED = 3
"""Messages that are deleted while the back end fails: more than one, so that it can fail between them."""

_READ_AGAIN = 200
"""Messages whose contents are compared after a deletion."""


def check_failing_deletion(bench: Bench) -> None:
    """Delete while the back end fails."""
    break_backend = bench.options.break_backend
    if break_backend is None:
        return
    with bench.serving():
        before = bench.look_into(_READ_AGAIN)
        if not before.ids:
            return
        marked = range(1, min(len(before.ids), _TRIED) + 1)
        with bench.session() as visitor:
            for number in marked:
                visitor.ok(f"DELE {number}")
            with bench.recorder.excusing(), break_backend():
                answer = visitor.ask("QUIT")
                visitor.leave("a QUIT whose deletion failed")
        after = bench.look_into(_READ_AGAIN)
    gone = [number for number in marked if before.ids[number - 1] not in after.ids]
    _explain_failure(bench, answer, len(gone), len(marked))
    _compare_others(
        bench, before, after, marked, f"When QUIT was answered {answer.split(' ')[0]} as the back end failed"
    )


def _explain_failure(bench: Bench, answer: str, gone: int, marked: int) -> None:
    refused = answer.startswith("-ERR")
    what = "all" if gone == marked else "some messages"
    if refused and gone:
        bench.report.add(
            f"QUIT was answered -ERR as the back end failed, and {what} are gone",
            "a client that has been told that nothing was deleted finds mail missing",
            "Delete in one transaction, or move one file into place, and raise if it fails",
        )
    elif not refused and gone < marked:
        bench.report.add(
            "QUIT was answered +OK as the back end failed, and messages are still there: the error is swallowed",
            "a client takes the messages for deleted, and gets them a second time",
            "Let delete_messages raise what the back end raises",
        )
    elif not refused:
        bench.report.note("The hook that should make the back end fail made no difference: all was deleted.")


def _compare_others(bench: Bench, before: Snapshot, after: Snapshot, marked: Sequence[int], when: str) -> bool:
    """See that the messages that stay are what they were, and return whether they are."""
    still = set(after.ids)
    lost = [number for number, known in enumerate(before.ids, 1) if number not in marked and known not in still]
    damaged, copied = before.differing(after), before.copied(after)
    if lost:
        bench.report.add(
            f"{when}, message {lost[0]}, which was not marked, is gone",
            "mail is lost that nobody has fetched",
            "Delete the messages that had these numbers in the listing, counted from 1",
        )
    if damaged:
        bench.report.add(
            f"{when}, message {damaged[0]} stays, and has another content or size than before",
            "mail is lost or damaged that nobody has fetched",
            "Leave the messages that stay as they are, each with its id, also when a deletion fails; a file that holds "
            "several messages is written anew beside the old one, and then moved into its place",
            kind=when,
        )
    if copied:
        bench.report.add(
            f"{when}, the maildrop has {count(copied, 'message')} besides: each is a copy of one that was there",
            "a client fetches the same mail again",
            "Add nothing to a maildrop in delete_messages",
            kind=when,
        )
    return not (lost or damaged or copied)


def _choose(ids: Sequence[str]) -> list[int]:
    """Return numbers to be marked, with others between them if there are enough."""
    return [2, 4] if len(ids) > 3 else [2] if len(ids) > 1 else [1] * len(ids)


def check_deletion(bench: Bench) -> None:
    """Delete some messages, then one, then all that are left."""
    if not bench.options.delete:
        bench.report.note("Nothing has been deleted, so that has not been checked: see --delete.")
        return
    with bench.serving():
        with bench.session() as visitor:
            total = len(visitor.listing("UIDL"))
            visitor.quit()
        if total < 4:
            has = f"The maildrop has {count(total, 'message')}"
            bench.report.note(f"{has}: four are needed to see that no other is deleted.")
        for choose in (_choose, lambda ids: [len(ids)]):
            if not _delete(bench, choose):
                return
        with bench.nobody_reads_output():
            _delete(bench, lambda ids: list(range(1, len(ids) + 1)))


def _delete(bench: Bench, choose: Callable[[Sequence[str]], list[int]]) -> bool:
    """Delete messages, and return whether there is anything left to be checked."""
    before = bench.look_into(_READ_AGAIN)
    marked = choose(before.ids)
    with bench.session() as visitor:
        for number in marked:
            visitor.ok(f"DELE {number}")
        events = bench.report.events
        answer = _quit(bench, visitor)
    if not answer.startswith("+OK"):
        if bench.report.events == events:
            raise StopError(f"QUIT was answered {answer}")
        return False
    after = bench.look_into(_READ_AGAIN)
    return _compare(bench, before, after, marked) and bool(after.ids)


def _quit(bench: Bench, visitor: Visitor) -> str:
    """Say QUIT, and see that the maildrop is locked until unlock_maildrop is called."""
    assert visitor.session is not None
    with visitor.session.held("unlock_maildrop") as gate:
        visitor.send("QUIT")
        bench.wait(gate.reached.wait, "there is no answer after QUIT")
        expect_refusal(
            bench,
            "after delete_messages and before unlock_maildrop",
            "the next session may begin while this one has not ended, and this one may then release its lock",
        )
    answer = visitor.line("QUIT")
    visitor.leave("QUIT")
    return answer


def _compare(bench: Bench, before: Snapshot, after: Snapshot, marked: Sequence[int]) -> bool:
    """Compare the maildrop before and after a deletion, and return whether all is right."""
    stay = [known for number, known in enumerate(before.ids, 1) if number not in marked]
    left = [number for number in marked if before.ids[number - 1] in after.ids]
    if set(stay) != set(after.ids) and _contents(before, stay) == _contents(after, after.ids) != []:
        bench.report.add(
            "The ids move to other messages when a message is deleted",
            "clients that leave mail on the server take new mail for what they have, and never fetch it",
            "Store an id with each message, or make it from what never changes; the number is no id",
        )
        return False
    if not _compare_others(bench, before, after, marked, f"After DELE {' '.join(map(str, marked))} and QUIT"):
        return False
    if left:
        bench.report.add(
            f"Message {left[0]} is still there after QUIT was answered +OK",
            "clients that fetch and delete get the same mail again, each time",
            "Delete each message in delete_messages, durably, and raise if that fails",
        )
    return not left


def _contents(maildrop: Snapshot, ids: Sequence[str]) -> list[bytes]:
    """Return the digests of these messages; none if not all have been read."""
    found = [maildrop.digests[unique_id] for unique_id in ids if unique_id in maildrop.digests]
    return found if len(found) == len(ids) else []
