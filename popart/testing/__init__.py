"""A POP3 server for the tests of programs that fetch mail::

    from popart.testing import MailServer

    with MailServer(users={"alice": "secret"}) as server:
        server.deliver("alice", b"Subject: x\\n\\nhello\\n")
        fetch(server.host, server.port)
    assert server.messages("alice") == []

It is `popart.Server` with its mail in memory: it does what any popart server does, until a fault is asked for.  In
pytest the fixtures ``pop3_server`` and ``pop3s_server`` are such servers; ``python3 -m popart.testing`` is one in a
shell, and with ``--control`` one for the tests of any language.
"""

from popart.testing.maildrop import Maildrop
from popart.testing.server import MailServer
from popart.testing.session_record import SessionRecord

__all__ = ["MailServer", "Maildrop", "SessionRecord"]
