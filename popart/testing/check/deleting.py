"""The checks that delete: exactly what was marked, at QUIT, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popart.testing.check.bench import Bench, Visitor, digest
from popart.testing.check.client import BlockedError, StopError
from popart.testing.check.locking import expect_refusal

_TRIED = 3
"""Messages that are deleted while the back end fails: two or more, that it may fail between them."""

_READ_AGAIN = 200
"""Messages of which the contents are compared after a deletion."""


def check_failing_deletion(bench: Bench) -> None:
    """Delete while the back end fails."""
    recorder, break_backend = bench.recorder, bench.options.break_backend
    if break_backend is None:
        return
    with bench.serving():
        with bench.session() as visitor:
            before = visitor.listing("UIDL")
            if not before:
                return
            marked = range(1, min(len(before), _TRIED) + 1)
            for number in marked:
                visitor.ok(f"DELE {number}")
            recorder.excused = True
            try:
                with break_backend():
                    answer = visitor.ask("QUIT")
                    visitor.leave()
                    bench.last_end = "a QUIT whose deletion failed"
            finally:
                recorder.excused = False
                recorder.failures.clear()
        with bench.session() as visitor:
            after = visitor.listing("UIDL")
            visitor.quit()
    gone = [number for number in marked if before[number - 1] not in after]
    _explain_failure(bench, answer, len(gone), len(marked))


def _explain_failure(bench: Bench, answer: str, gone: int, marked: int) -> None:
    refused = answer.startswith("-ERR")
    what = "all" if gone == marked else "some messages"
    if refused and gone:
        bench.report.add(
            "half",
            f"QUIT was answered -ERR as the back end failed, and {what} are gone",
            "a client that has been told that nothing was deleted finds mail missing",
            "Delete in one transaction, or move one file into place, and raise if it fails",
        )
    elif not refused and gone < marked:
        bench.report.add(
            "swallowed",
            "QUIT was answered +OK as the back end failed, and messages are still there: the error is swallowed",
            "a client takes the messages for deleted, and gets them a second time",
            "Let delete_messages raise what the back end raises",
        )
    elif not refused:
        bench.report.note("The hook that should make the back end fail made no difference: all was deleted.")


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
            count = len(visitor.listing("UIDL"))
            visitor.quit()
        if count < 4:
            bench.report.note(f"The maildrop has {count} messages: four are needed to see that no other is deleted.")
        for choose in (_choose, lambda ids: [len(ids)]):
            if not _delete(bench, choose):
                return
        with bench.nobody_reads_output():
            _delete(bench, lambda ids: list(range(1, len(ids) + 1)))


def _delete(bench: Bench, choose: Callable[[Sequence[str]], list[int]]) -> bool:
    """Delete messages, and return whether there is anything left to be checked."""
    contents = _read_all(bench)
    with bench.session() as visitor:
        before = visitor.listing("UIDL")
        marked = choose(before)
        for number in marked:
            visitor.ok(f"DELE {number}")
        events = bench.report.events
        answer = _quit(bench, visitor)
    if not answer.startswith("+OK"):
        if bench.report.events == events and not bench.recorder.failures:
            raise StopError(f"QUIT was answered {answer}")
        return False
    with bench.session() as visitor:
        after = visitor.listing("UIDL")
        visitor.quit()
    same = bool(contents) and _without(contents, marked) == _read_all(bench)
    return _compare(bench, before, after, marked, same) and bool(after)


def _quit(bench: Bench, visitor: Visitor) -> str:
    """Say QUIT, and see that the maildrop is locked until unlock_maildrop is called."""
    assert visitor.session is not None
    with visitor.session.held("unlock_maildrop") as gate:
        visitor.send("QUIT")
        if not gate.reached.wait(bench.options.patience):
            raise BlockedError("no answer after QUIT")
        expect_refusal(
            bench,
            "after delete_messages and before unlock_maildrop",
            "the next session may begin while this one has not ended, and this one may then release its lock",
        )
    answer = visitor.line("QUIT")
    visitor.leave()
    bench.last_end = "QUIT"
    return answer


def _read_all(bench: Bench) -> list[bytes]:
    """Return what the messages are known by; nothing if there are too many, or if some cannot be read."""
    with bench.session() as visitor:
        count = len(visitor.listing("LIST"))
        found: list[bytes] = []
        try:
            while len(found) < count <= _READ_AGAIN and not bench.is_late:
                found.append(digest(visitor.read(len(found) + 1)))
        except StopError:
            return []
        finally:
            visitor.part()
    return found if len(found) == count else []


def _without(contents: Sequence[bytes], marked: Sequence[int]) -> list[bytes]:
    return [content for number, content in enumerate(contents, 1) if number not in marked]


def _compare(bench: Bench, before: Sequence[str], after: Sequence[str], marked: Sequence[int], same: bool) -> bool:
    """Compare the ids before and after a deletion, and return whether all is right."""
    still, doomed = set(after), set(marked)
    left = [number for number in marked if before[number - 1] in still]
    lost = [number for number, known in enumerate(before, 1) if number not in doomed and known not in still]
    if same and (left or lost) and len(after) == len(before) - len(marked):
        bench.report.add(
            "ids move",
            "The ids move to other messages when a message is deleted",
            "clients that leave mail on the server take new mail for what they have, and never fetch it",
            "Store an id with each message, or make it from what never changes; the number is no id",
        )
    elif lost:
        bench.report.add(
            "others deleted",
            f"After DELE {' '.join(map(str, marked))} and QUIT message {lost[0]}, which was not marked, is gone",
            "mail is lost that nobody has fetched",
            "Delete the messages that had these numbers in the listing, counted from 1",
        )
    elif left:
        bench.report.add(
            "not deleted",
            f"Message {left[0]} is still there after QUIT was answered +OK",
            "clients that fetch and delete get the same mail again, each time",
            "Delete each message in delete_messages, durably, and raise if that fails",
        )
    return not (left or lost)
