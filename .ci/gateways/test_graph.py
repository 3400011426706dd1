"""The gateway to an HTTP API: pages, limits, tokens, and a batch in which some requests fail."""

from __future__ import annotations

import importlib
import poplib
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest
from backends import Graph
from conftest import EXAMPLES, Gateway
from door import Door
from test_each_gateway import LARGE, SMALL, delete, fetch, fetch_all

import popart

pytestmark = pytest.mark.parametrize("backend", ["graph"], indirect=True)

MANY = [b"Subject: %d\r\n\r\n" % number for number in range(45)]


def test_pages_that_overlap(backend: Graph, gateway: Gateway) -> None:
    """A message that is on two pages, because others came before it meanwhile, is listed once."""
    backend.deliver(*SMALL)
    fake = backend.fake

    def insert() -> None:
        fake.between_pages = lambda: None
        fake.deliver(b"Subject: new\r\n\r\n")
        fake.messages = dict([list(fake.messages.items())[-1], *list(fake.messages.items())[:-1]])

    fake.between_pages = insert
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()


def test_a_page_elsewhere(backend: Graph, gateway: Gateway) -> None:
    """The token goes to the API, and to nobody whom an answer names."""
    backend.deliver(*SMALL)
    backend.fake.next_host = "localhost:1"
    with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), gateway.client():
        pass
    assert "must not get the token" in gateway.log()
    backend.fake.next_host = None
    backend.fake.fail("GET", 302, Location=f"http://localhost:{backend.port}/elsewhere")
    with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), gateway.client():
        pass
    assert not [request for request in backend.fake.asked if "elsewhere" in request]


def test_requests_that_come_too_soon(backend: Graph, gateway: Gateway) -> None:
    """HTTP 429 and 503 are waited out, as long as Retry-After says, wherever they come."""
    backend.deliver(*SMALL)
    fake = backend.fake
    fake.fail(r"POST .*token", 503, Retry_After="1")
    fake.fail(r"GET .*/inbox/messages", 429, Retry_After="1")
    fake.fail(r"GET .*value", 503, Retry_After="0")
    fake.fail(r"POST .*batch", 429, Retry_After=formatdate(usegmt=True))
    fake.fail(r"batch", 429, times=2, Retry_After="0")
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        delete(client, 1, 2, 3)
        client.quit()
    assert not fake.faults
    assert backend.mail() == SMALL[3:]
    assert fake.in_folder("deleteditems") == SMALL[:3]
    moves = [request for request in fake.asked if request.startswith("batch")]
    assert len(moves) == 3 + 2 and len(set(moves)) == 3


def test_a_wait_that_no_client_would_bear(backend: Graph, gateway: Gateway) -> None:
    """It is refused at once, and the client may come back."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        backend.fake.fail(r"GET .*value", 429, Retry_After="3600")
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] the mailboxes are busy"):
            client.retr(1)
        assert fetch_all(client) == SMALL
        client.quit()


@dataclass
class Clock:
    """A clock in place of ``time``, which nobody waits for."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.syspath_prepend(EXAMPLES)
    clock = Clock()
    monkeypatch.setattr(importlib.import_module("graph_gateway"), "time", clock)
    return clock


@pytest.fixture
def handler(backend: Graph, clock: Clock) -> Any:
    """A handler without a server, for which alice has signed in."""
    module = importlib.import_module("graph_gateway")
    address = f"http://127.0.0.1:{backend.port}"
    credentials = {"grant_type": "client_credentials", "client_secret": "client-secret"}
    api = module.API(f"{address}/v1.0", f"{address}/tenant/oauth2/v2.0/token", credentials)
    handler = module.GraphHandler(api, importlib.import_module("gateway").Users("alice:secret"))
    handler.authenticate_pass("alice", "secret")
    return handler


def test_patience_begins_anew(backend: Graph, clock: Clock, handler: Any) -> None:
    """A large maildrop is listed and emptied, although all waits together are longer than one may be."""
    backend.deliver(*MANY)
    fake = backend.fake
    for skip in ("top=500", *[f"skip={start}" for start in range(3, 45, 3)]):
        fake.fail(rf"GET .*{skip}$", 429, Retry_After="3")
    assert len(handler.list_messages()) == len(MANY)
    assert clock.now == 3 * 15
    # Of the second batch, one message is moved in the second round, and one in the third.
    for number in (7, 28, 29, 29, 44):
        fake.fail(rf"batch .*{number:04d}%2B", 429, Retry_After="15")
    handler.delete_messages(range(1, len(MANY) + 1))
    assert not fake.faults and backend.mail() == []
    assert clock.now == 3 * 15 + 4 * 15


def test_patience_ends(backend: Graph, clock: Clock, handler: Any) -> None:
    """If nothing moves for 20 seconds, QUIT is refused, and all that moved before comes back."""
    backend.deliver(*MANY)
    handler.list_messages()
    backend.fake.fail(r"batch .*/inbox/.*0044%2B", 429, times=100, Retry_After="3")
    with pytest.raises(popart.ReportableError, match="busy"):
        handler.delete_messages(range(1, len(MANY) + 1))
    assert 15 <= clock.now <= 20
    assert backend.mail() == MANY


def test_pages_that_go_round(backend: Graph, gateway: Gateway) -> None:
    """A list that comes back to a page is no list: the client reads SYS/TEMP, and the requests end."""
    backend.deliver(*SMALL)
    backend.fake.is_circular = True
    with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), gateway.client():
        pass
    assert "round in a circle" in gateway.log()


def test_a_token_that_is_not_given(backend: Graph, door: Door, gateway: Gateway) -> None:
    """A lost answer is asked for once more.  A refusal is not taken for one of the API's."""
    backend.deliver(*SMALL)
    door.shut_at(b"POST /tenant/oauth2", answer_is_lost=True)
    with gateway.client() as client:
        assert door.was_shut.is_set()
        for status in (404, 401):
            backend.fake.expire()
            backend.fake.fail(r"POST .*token", status)
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                client.retr(1)
        assert fetch_all(client) == SMALL
        client.quit()
    assert "no token: HTTP 404" in gateway.log() and "no token: HTTP 401" in gateway.log()


def test_a_token_that_expires(backend: Graph, gateway: Gateway) -> None:
    """It is renewed, once, and the session goes on."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        for number in (1, 2):
            backend.fake.expire()
            assert fetch(client, number) == SMALL[number - 1]
        delete(client, 1)
        backend.fake.expire()
        client.quit()
    assert backend.fake.tokens == 4
    assert backend.mail() == SMALL[1:]


def test_a_token_that_is_never_taken(backend: Graph, gateway: Gateway) -> None:
    """The API may refuse every token: the client reads SYS/TEMP, and no new token is asked for again and again."""
    backend.fake.fail(r"GET", 401, times=10)
    with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), gateway.client():
        pass
    assert backend.fake.tokens == 2
    backend.fake.faults.clear()
    assert "token-" not in gateway.log() and "client-secret" not in gateway.log()


def test_sessions_share_the_token(backend: Graph, gateway: Gateway) -> None:
    """It is asked for once."""
    for _ in range(3):
        with gateway.client() as client:
            client.quit()
    assert backend.fake.tokens == 1


def test_more_than_a_batch(backend: Graph, gateway: Gateway) -> None:
    """A $batch takes 20 requests: 43 deletions take three."""
    backend.deliver(*MANY)
    with gateway.client() as client:
        delete(client, *range(2, 45))
        client.quit()
    assert backend.mail() == [MANY[0], MANY[44]]
    assert backend.fake.asked.count("POST /v1.0/$batch") == 3


def test_all_or_none(backend: Graph, gateway: Gateway) -> None:
    """If one message cannot be moved, the others come back, also those of earlier batches.  QUIT is refused."""
    backend.deliver(*MANY)
    with gateway.client() as client:
        delete(client, *range(1, 46))
        backend.fake.fail(r"batch .*0033%2B", 403)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert not backend.fake.faults
    assert backend.mail() == MANY


@pytest.mark.parametrize("answer", [None, 504, 500])
def test_all_or_none_where_nobody_knows(backend: Graph, gateway: Gateway, answer: int | None) -> None:
    """A move may have happened although its answer is missing or says that the server failed: it is undone, too."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2, 3)
        # A batch is done from its last request to its first.
        backend.fake.done_all_the_same = [answer]
        backend.fake.fail(r"batch .*0000%2B", 403)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert not backend.fake.faults and not backend.fake.done_all_the_same
    assert backend.mail() == SMALL


def test_a_refusal_says_nothing_about_an_earlier_try(backend: Graph, gateway: Gateway) -> None:
    """A move happened without an answer, and the next try is told to come later: it is undone, too."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2, 3)
        backend.fake.done_all_the_same = [None]
        backend.fake.fail(r"batch .*0002%2B", 429, Retry_After="3600")
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] the mailboxes are busy"):
            client.quit()
    assert not backend.fake.faults
    assert backend.mail() == SMALL


def test_a_move_that_cannot_be_undone(backend: Graph, gateway: Gateway) -> None:
    """The client reads -ERR.  The log has both failures, and the mail is in "Deleted Items"."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2)
        backend.fake.fail(r"batch .*/inbox/.*0000%2B", 403)
        backend.fake.fail(r"batch .*/deleteditems/.*0001%2B", 423)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert "HTTP 403" in gateway.log() and "HTTP 423" in gateway.log()
    assert (backend.mail(), backend.fake.in_folder("deleteditems")) == ([SMALL[0], *SMALL[2:]], [SMALL[1]])


@pytest.mark.parametrize("answer", [None, 504])
def test_a_move_that_happened_without_an_answer(backend: Graph, gateway: Gateway, answer: int | None) -> None:
    """It is asked for again, and counts as done if the message is no longer in the folder."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2)
        backend.fake.done_all_the_same = [answer]
        client.quit()
    assert backend.mail() == SMALL[2:]


def test_what_the_user_has_filed_stays_there(backend: Graph, gateway: Gateway) -> None:
    """QUIT deletes from the inbox only, and a deletion that is undone brings nothing into it."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2)
        next(iter(backend.fake.messages.values())).folder = "archive"
        backend.fake.fail(r"batch .*0001%2B", 403)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert (backend.fake.in_folder("archive"), backend.mail()) == (SMALL[:1], SMALL[1:])
    with gateway.client() as client:
        delete(client, 1)
        client.quit()
    assert (backend.fake.in_folder("archive"), backend.mail()) == (SMALL[:1], SMALL[2:])


def test_an_answer_that_is_missing(backend: Graph, gateway: Gateway) -> None:
    """A batch may answer fewer requests than it was given: the others are made again."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 2, 3)
        backend.fake.lost_answers = 2
        client.quit()
    assert backend.mail() == SMALL[3:]


def test_a_message_that_vanished(backend: Graph, gateway: Gateway) -> None:
    """RETR of it is refused, and deleting it is no error."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        del backend.fake.messages[next(iter(backend.fake.messages))]
        with pytest.raises(poplib.error_proto, match="-ERR the message is gone"):
            client.retr(1)
        delete(client, 1, 2)
        client.quit()
    assert backend.mail() == SMALL[2:]


def test_a_body_that_breaks_off(backend: Graph, gateway: Gateway) -> None:
    """It is asked for once more.  If it breaks off again, the client reads -ERR."""
    backend.deliver(LARGE)
    with gateway.client() as client:
        backend.fake.cut_bodies = 1
        assert fetch(client, 1) == LARGE
        backend.fake.cut_bodies = 2
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.retr(1)
        client.quit()
