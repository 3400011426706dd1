from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from popart.testing import MailServer

MESSAGES = [
    b"Subject: %d\r\n\r\n%b.dot\r\n" % (number, b"hello\r\n" * 40)
    for number in range(3)
]

Fetch = Callable[[str, int], bool]
Ask = Callable[[MailServer], object]


def run(fetch: Fetch, server: MailServer, seconds: float) -> bool:
    with ThreadPoolExecutor() as pool:
        try:
            done = pool.submit(fetch, server.host, server.port).result(seconds)
        except BaseException:  # it has crashed, or hangs
            server.stop()  # so that a run that hangs ends
            raise
    server.wait_for_session_end()  # until then the maildrop is locked
    return done


def try_moving(
    fetch: Fetch, stored: list[bytes], ask: Ask, seconds: float = 3.0
) -> None:
    with MailServer() as server:
        for message in MESSAGES:
            server.deliver("alice", message)
        ask(server)
        for _ in range(3):
            if run(fetch, server, seconds):
                break
        assert server.pending_faults == []
    assert server.messages("alice") == []
    assert sorted(stored) == MESSAGES


def try_keeping(
    fetch: Fetch, stored: list[bytes], ask: Ask, seconds: float = 3.0
) -> None:
    with MailServer() as server:
        for message in MESSAGES:
            server.deliver("alice", message)
        run(fetch, server, seconds)
        ask(server)
        for _ in range(2):
            run(fetch, server, seconds)
        assert server.pending_faults == []
    assert sorted(stored) == MESSAGES
