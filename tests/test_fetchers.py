"""The table of faults in docs/howto-testing.rst finds what it says: each bug in it is caught by a test of one line."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from popart.testing import MailServer

from . import fetchers
from .fetchers import Fetcher, FetchError

PAGE = Path(__file__).parent.parent / "docs" / "howto-testing.rst"
FAULTS = re.findall(r"^``(server\..*?)`` ", PAGE.read_text("utf-8"), re.MULTILINE)

MESSAGES = [b"Subject: %d\r\n\r\n%b.dot\r\n" % (number, b"hello\r\n" * 30) for number in range(3)]

PATIENT, STRICT = 60.0, 3.0
"""Seconds in which a run must be over: for programs that are right, on a busy machine, and for those that hang."""


def check(fetcher: Fetcher, fault: str, seconds: float = PATIENT) -> None:
    """The test of somebody who has read the page: with this fault all mail is moved, once and whole."""
    with MailServer(users={"alice": "secret"}) as server:
        for message in MESSAGES:
            server.deliver("alice", message)
        eval(fault, {"server": server})
        for _ in range(3):
            if run(fetcher, server, seconds):
                assert server.messages("alice") == [], "it says that all is well, and is not done"
                break
        assert server.pending_faults == []
    assert server.messages("alice") == []
    assert sorted(fetcher.stored) == MESSAGES


def run(fetcher: Fetcher, server: MailServer, seconds: float = PATIENT) -> bool:
    """Let it fetch, as a timer does again and again, and return whether it says that all went well.

    It may say that it did not, but it neither crashes nor hangs.
    """
    results: list[object] = []

    def fetch() -> None:
        try:
            fetcher.run((server.host, server.port))
            results.append(True)
        except FetchError:
            results.append(False)
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    thread.join(seconds)
    hangs = thread.is_alive()
    if hangs:
        server.stop()  # so its socket ends
    thread.join()
    assert not hangs, "it hangs"
    server.wait_for_session_end()
    assert isinstance(results[0], bool), results
    return results[0]


def check_that_keeps(fetcher: Fetcher, fault: str) -> None:
    """The same for a program that leaves its mail on the server: it stores each message once, however often it
    looks."""
    with MailServer() as server:
        for message in MESSAGES:
            server.deliver("alice", message)
        run(fetcher, server)
        eval(fault, {"server": server})
        for _ in range(2):
            run(fetcher, server)
        assert server.pending_faults == []
    assert sorted(fetcher.stored) == MESSAGES


CASES = {
    "server.refuse_connection()": [fetchers.SkipsTheGreeting],
    "server.refuse_sign_in()": [fetchers.TakesRefusalForEver, fetchers.IgnoresTheSignIn],
    "server.lock_maildrop()": [fetchers.GivesUpWhenLocked],
    'server.fail("RETR 2", code="SYS/TEMP")': [fetchers.StoresTheRefusal, fetchers.SkipsAndDeletes],
    "server.fail_commit()": [fetchers.IgnoresQuit],
    'server.drop("DELE")': [fetchers.RemembersNothing],
    'server.drop("RETR", after=100)': [fetchers.TrustsTheEnd],
    'server.drop("RETR", after=100, how="reset")': [fetchers.KnowsNoResets],
    'server.hang_up("DELE")': [fetchers.TakesDeleForDone],
    "server.delay_greeting()": [fetchers.ConnectsWithTimeout],
    'server.delay("LIST", 3.5)': [fetchers.WaitsForEver],
    'server.stall("RETR", 60, after=100)': [fetchers.TimesTheFirstLine],
    'server.drip("RETR", 0.001, times=None)': [fetchers.TakesAReadForALine, fetchers.HasADeadlineForAll],
    'server.split("RETR", times=None)': [fetchers.LooksForTheEndInEachRead],
    'server.truncate("RETR", after=100)': [fetchers.ComparesNoSizes],
    "server.spoil_sizes(-1)": [fetchers.ReadsAsMuchAsWasSaid],
    "server.spoil_sizes(1)": [fetchers.WaitsForWhatWasSaid],
    'server.spoil_ids("repeat")': [fetchers.TrustsTheIds],
    'server.spoil_ids("malformed")': [fetchers.TrustsTheIds],
    'server.hide("UIDL", "TOP", times=None)': [fetchers.NeedsUidl],
    'server.fail("CAPA", times=None)': [fetchers.NeedsCapa],
}
"""The bugs that each row of the table names."""

KEEPING = 'server.spoil_ids("change")'
"""The row whose program leaves its mail on the server."""


def test_each_row_has_its_bugs() -> None:
    """No row of the table is without a program that it finds."""
    assert set(FAULTS) == {*CASES, KEEPING}


@pytest.mark.parametrize("fault", CASES)
def test_a_right_program_passes(fault: str) -> None:
    """A program that fetches rightly gets its mail with each of the faults."""
    check(Fetcher(), fault)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [pytest.param(fault, wrong, id=f"{fault}-{wrong.__name__}") for fault, wrongs in CASES.items() for wrong in wrongs],
)
def test_a_bug_is_found(fault: str, wrong: type[Fetcher]) -> None:
    """The same test fails for a program that has the bug, which works where nothing goes wrong."""
    check(wrong(), "None")
    with pytest.raises(AssertionError):
        check(wrong(), fault, STRICT)


def test_mail_that_stays_on_the_server() -> None:
    """New ids for old mail: who goes by the ids alone stores it all again, who looks at the messages does not."""
    check_that_keeps(fetchers.KeepsItsMail(), KEEPING)
    check_that_keeps(fetchers.GoesByTheIds(), "None")
    with pytest.raises(AssertionError):
        check_that_keeps(fetchers.GoesByTheIds(), KEEPING)
