"""Twisted's POP3 server with the suite's messages in memory, for `other_servers`.

    python3 -m tests.wire.twisted_server PORT

The messages have LF line ends, because Twisted turns each LF into CRLF, even the LF of a CRLF.  Its own Maildir is of
no use here: it opens messages as text, and an answer to RETR never ends.
"""

from __future__ import annotations

import hashlib
import io
import sys
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import protocol, reactor
from twisted.mail.pop3 import POP3, IMailbox
from zope.interface import implementer

from popart.testing.wire.messages import ALL, on_the_wire

kept = list(ALL)


@implementer(IMailbox)
class Mailbox:
    """What one session sees."""

    def __init__(self) -> None:
        self.messages = list(kept)
        self.undeleteMessages()

    def listMessages(self, index: int | None = None) -> Any:
        return self.sizes if index is None else self.sizes[index]

    def getMessage(self, index: int) -> io.BytesIO:
        return io.BytesIO(self.messages[index].replace(b"\r\n", b"\n"))

    def getUidl(self, index: int) -> bytes:
        return hashlib.sha256(self.messages[index]).hexdigest().encode()

    def deleteMessage(self, index: int) -> None:
        self.sizes[index] = 0  # as IMailbox requires

    def undeleteMessages(self) -> None:
        self.sizes = [len(on_the_wire(message)) for message in self.messages]

    def sync(self) -> None:
        kept[:] = [message for message, size in zip(self.messages, self.sizes, strict=True) if size]


class Realm:
    def requestAvatar(self, avatar_id: bytes, mind: object, *interfaces: type) -> tuple[Any, ...]:
        return IMailbox, Mailbox(), lambda: None


def main() -> None:
    factory = protocol.ServerFactory()
    factory.protocol = POP3
    factory.noisy = False
    POP3.portal = Portal(Realm(), [InMemoryUsernamePasswordDatabaseDontUse(alice=b"secret")])
    reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
