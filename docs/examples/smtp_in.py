"""A mail server for tests: programs send to it by SMTP, and fetch by POP3.  One
process, with the mail in memory::

    python3 docs/examples/smtp_in.py

It needs aiosmtpd: pip install -e '.[gateways]'.  Mail to alice or Alice at any domain
is alice's.  The users are those of the environment variable POP3_USERS, in small
letters, or alice with the password "secret".  If it ends, the mail is gone.

SMTP has neither TLS nor passwords, also with --host and --pem: on another address than
loopback, everybody who reaches the port can send to it.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import threading
from collections.abc import Sequence

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from gateway import OwnUsersHandler, Users, make_parser, read_users, serve

import popart


class Mail:
    """All messages, by user and unique-id.  aiosmtpd's thread and popart's share
    them."""

    def __init__(self) -> None:
        self._messages: dict[str, dict[str, bytes]] = {}
        self._guard = threading.Lock()

    def deliver(self, username: str, octets: bytes) -> None:
        with self._guard:
            self._messages.setdefault(username, {})[secrets.token_hex(16)] = octets

    def find(self, username: str) -> list[tuple[str, bytes]]:
        with self._guard:
            return list(self._messages.get(username, {}).items())

    def delete(self, username: str, uids: list[str]) -> None:
        with self._guard:
            for uid in uids:
                self._messages[username].pop(uid, None)  # it may be gone already


class SMTPHandler:
    """What aiosmtpd asks."""

    def __init__(self, mail: Mail, users: Users) -> None:
        self._mail = mail
        self._users = users

    async def handle_RCPT(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if user_of(address) not in self._users:
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        for username in set(map(user_of, envelope.rcpt_tos)):  # once for each
            self._mail.deliver(username, popart.wire_form(envelope.content))
        return "250 2.0.0 delivered"


def user_of(address: str) -> str:
    return address.rpartition("@")[0].lower()


class POP3Handler(OwnUsersHandler):
    """What popart asks."""

    def __init__(self, mail: Mail, users: Users) -> None:
        super().__init__(users)
        self._mail = mail
        self._messages: list[tuple[str, bytes]] = []

    def list_messages(self) -> list[tuple[int, str]]:
        # The session's own list: mail that comes meanwhile has no number in it.
        self._messages = self._mail.find(self.username)
        return [(len(octets), uid) for uid, octets in self._messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(self._messages[number - 1][1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self._mail.delete(
            self.username, [self._messages[number - 1][0] for number in numbers]
        )


class PortController(Controller):
    """A controller that also knows its port if that is any free one."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--smtp-port",
        type=int,
        default=2525,
        help="the port to listen on for mail; 0 is any free one",
    )
    options = parser.parse_args()
    mail, users = Mail(), read_users("alice:secret")
    controller = PortController(
        SMTPHandler(mail, users), options.host, options.smtp_port
    )
    controller.start()
    try:
        print("SMTP on port", controller.port, flush=True)
        serve(options, lambda peer: POP3Handler(mail, users))
    finally:
        controller.stop()


if __name__ == "__main__":
    main()
