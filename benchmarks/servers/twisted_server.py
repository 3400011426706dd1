"""Twisted's POP3 server with the same maildrop in memory."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from twisted.internet import protocol, reactor
from twisted.mail import pop3
from zope.interface import implementer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data


@implementer(pop3.IMailbox)
class Mailbox:
    """One session's maildrop: it holds the marks of DELE."""

    def __init__(self, maildrop: data.Maildrop, sizes: list[int], ids: list[bytes]) -> None:
        self.maildrop = maildrop
        self.sizes = self.kept_sizes = sizes
        self.ids = ids

    def listMessages(self, index=None):
        return self.sizes if index is None else self.sizes[index]

    def getMessage(self, index):
        return io.BytesIO(self.maildrop.message(index + 1))

    def getUidl(self, index):
        return self.ids[index]

    def deleteMessage(self, index):
        # Twisted's POP3 wants this of a mailbox: a message marked as deleted has the size 0.
        if self.sizes is self.kept_sizes:
            self.sizes = list(self.sizes)
        self.sizes[index] = 0

    def undeleteMessages(self):
        self.sizes = self.kept_sizes

    def sync(self): ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("maildrop", choices=data.MAILDROPS)
    parser.add_argument("--tls", metavar="PEM", help="a file with a certificate and its key")
    arguments = parser.parse_args()
    maildrop = data.make_maildrop(arguments.maildrop)
    sizes = [size for size, _ in maildrop.listing()]
    ids = [identifier.encode() for _, identifier in maildrop.listing()]

    class POP3(pop3.POP3):
        def connectionMade(self):
            self.transport.setTcpNoDelay(True)
            super().connectionMade()

        def authenticateUserPASS(self, user, password):
            if (user, password) != (maildrop.name.encode(), data.PASSWORD.encode()):
                raise pop3.POP3Error(b"wrong name or password")
            return pop3.IMailbox, Mailbox(maildrop, sizes, ids), lambda: None

    factory = protocol.ServerFactory()
    factory.protocol = POP3
    factory.noisy = False
    if arguments.tls:
        from twisted.internet import ssl

        options = ssl.PrivateCertificate.loadPEM(Path(arguments.tls).read_bytes()).options()
        reactor.listenSSL(arguments.port, factory, options, backlog=128, interface="127.0.0.1")
    else:
        reactor.listenTCP(arguments.port, factory, backlog=128, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
