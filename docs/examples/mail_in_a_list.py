import threading
from collections.abc import Sequence
from io import BytesIO

import popart

# The mail: for each message its unique-id and its octets.
MAIL = [
    ("lunch", b"From: bob@example.org\r\nSubject: Lunch?\r\n\r\nAt noon, as ever.\r\n"),
    (
        "invoice",
        b"From: carol@example.org\r\nSubject: Invoice\r\n\r\nPlease pay soon.\r\n",
    ),
]
LOCK = threading.Lock()


class ListHandler(popart.BaseHandler):
    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []

    # Signing in.

    def authenticate_pass(self, username: str, password: str) -> None:
        if (username, password) != ("alice", "secret"):
            raise popart.ReportableError("wrong name or password")

    def lock_maildrop(self) -> None:
        if not LOCK.acquire(blocking=False):
            raise popart.ReportableError("another session has the maildrop")
        self.messages = list(MAIL)

    # Reading.  Messages are numbered from 1.

    def list_messages(self) -> list[tuple[int, str]]:
        return [(popart.wire_size(octets), uid) for uid, octets in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return BytesIO(self.messages[number - 1][1])

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            MAIL.remove(self.messages[number - 1])

    def unlock_maildrop(self) -> None:
        LOCK.release()

    def handle_session_error(self, error: BaseException) -> None:
        print("session error:", repr(error))


with popart.Server(("127.0.0.1", 1100), lambda peer: ListHandler()) as server:
    print("POP3 on port", server.server_address[1])
    server.serve_forever()
