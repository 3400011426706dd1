"""The table of faults in docs/howto-testing.rst finds what it says: each bug in it is caught by a test of one line."""

from __future__ import annotations

import re
import runpy
from concurrent import futures
from pathlib import Path

import pytest

from . import fetchers
from .fetchers import Fetcher, FetchError

PAGE = Path(__file__).parent.parent / "docs" / "howto-testing.rst"
FAULTS = re.findall(r"^``(server\..*?)`` ", PAGE.read_text("utf-8"), re.MULTILINE)

RECIPE = runpy.run_path(str(PAGE.parent / "examples" / "try_faults.py"))
"""What the page tells its reader to write."""

PATIENT, STRICT = 60.0, 3.0
"""Seconds in which a run must be over: for programs that are right, on a busy machine, and for those that hang."""

FOUND = (AssertionError, OSError, LookupError, ValueError, futures.TimeoutError, SystemExit)
"""How a test fails: what it asks is not so, or the program crashes or hangs."""


def check(fetcher: Fetcher, fault: str, seconds: float = PATIENT, how: str = "try_moving") -> None:
    """The test of somebody who has read the page."""

    def fetch(host: str, port: int) -> bool:
        try:
            fetcher.run((host, port))
        except FetchError:
            return False
        return True

    RECIPE[how](fetch, fetcher.stored, lambda server: eval(fault, {"server": server}), seconds)


CASES: dict[str, list[type[Fetcher]]] = {
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
    with pytest.raises(FOUND):
        check(wrong(), fault, STRICT)


def test_mail_that_stays_on_the_server() -> None:
    """New ids for old mail: who goes by the ids alone stores it all again, who looks at the messages does not."""
    check(fetchers.KeepsItsMail(), KEEPING, how="try_keeping")
    check(fetchers.GoesByTheIds(), "None", how="try_keeping")
    with pytest.raises(FOUND):
        check(fetchers.GoesByTheIds(), KEEPING, STRICT, how="try_keeping")
