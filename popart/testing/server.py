"""The mail server of the test kit."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import ssl
import tempfile
import threading
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from popart import options
from popart.connection import Connection
from popart.handler import Handler
from popart.options import LimitOptions, SocketOptions
from popart.server import Server
from popart.session import Session
from popart.testing.certificates import Certificates, needed_by
from popart.testing.handler import StoredMailHandler
from popart.testing.packets import RecordingSender
from popart.testing.recording import RecordingSession
from popart.testing.session_record import moments
from popart.testing.store import MailStore

started: weakref.WeakKeyDictionary[MailServer, int] = weakref.WeakKeyDictionary()
"""The servers that somebody may still look at, and when each was started last."""

AnyMailServer = TypeVar("AnyMailServer", bound="MailServer")


class MailServerOptions(SocketOptions, LimitOptions, total=False):
    """The arguments of `MailServer` that go to `popart.Server`, and its limits."""

    reuse_port: bool


class MailServer(MailStore):
    """A POP3 server on a free port of this machine, which runs as long as its ``with`` block.

    It is ready when you enter the block.  When you leave the block, all sessions end at once, and no port, thread or
    file remains, even if a process was forked meanwhile.  You can still read mail and records then, and enter the block
    again: the server comes back on the same port.  A forked child that leaves the block ends nothing in its parent.
    Where a block does not fit, as in unittest's ``setUpClass``, call `start` and `stop`.

    *users* maps names to passwords; neither may be empty.  With *tls* each connection is TLS from its first octet.
    This needs trustme, from popart's extra ``testing``.  *port* 0 is any free port.  *server_options* are
    `popart.Server`'s other arguments, with a *timeout* that may be as small as 0.01 seconds, and its limits by their
    names, such as ``max_failed_logins=1``.

    USER and PASS, and AUTH PLAIN, sign in with the password.  You can ask for more mechanisms of AUTH.  *tokens* offers
    XOAUTH2 and OAUTHBEARER: it maps names among *users* to OAuth 2.0 access tokens, and may be empty.  *scram* offers
    SCRAM-SHA-256, and needs scramp.  *login* offers LOGIN.  *client_certificates* needs *tls*, and offers EXTERNAL to
    clients that present a certificate from `client_certificate`::

        users, tokens = {"alice": "secret"}, {"alice": "ya29.x"}
        with MailServer(users, tokens=tokens, scram=True) as server:

    The methods that make the server fail are those of `popart.testing.faults.Faults`.

    :raises OSError: when entered: the port is not free.
    :raises ImportError: when entered: *tls* without trustme, *scram* without scramp.
    :raises ValueError: *client_certificates* without *tls*, *ssl_context* beside *tls*, a name, password or token that
        no client can send, such as an empty one, a token for a name that is not among *users*, or, when entered, a
        value of *server_options* that `popart.Server` does not take.
    """

    host: str
    """Where to connect: ``127.0.0.1``, or ``localhost`` with *tls*.  The certificate is for both.  With *tls* the
    server listens on ``::1`` too, where there is IPv6: some machines know localhost by that address first."""

    port: int
    """The TCP port, known when the block is entered."""

    ca_file: str | None
    """With *tls*, while in the block: the path of a PEM file with the throw-away authority that clients must trust."""

    def __init__(
        self,
        users: Mapping[str, str] = MappingProxyType({"alice": "secret"}),
        *,
        tokens: Mapping[str, str] | None = None,
        scram: bool = False,
        login: bool = False,
        tls: bool = False,
        client_certificates: bool = False,
        port: int = 0,
        **server_options: options.Unpack[MailServerOptions],
    ) -> None:
        if client_certificates and not tls:
            raise ValueError("client_certificates=True needs tls=True")
        if tls and server_options.get("ssl_context") is not None:
            raise ValueError("tls=True makes a certificate of its own: leave out tls or ssl_context")
        offers = {"tokens": tokens is not None, "scram": scram, "login": login, "certificates": client_certificates}
        super().__init__(users, tokens or {}, {name for name, wanted in offers.items() if wanted})
        self.host = "localhost" if tls else "127.0.0.1"
        self.port = port
        self.ca_file = None
        self._tls = tls
        self._certificates: Certificates | None = None
        self._server_options = server_options
        self._addresses = ["127.0.0.1", "::1"] if tls else ["127.0.0.1"]
        self._names = ["localhost", "127.0.0.1", "::1"]
        self._servers: list[_Server] = []
        self._block = contextlib.ExitStack()
        self._process = os.getpid()

    def __enter__(self: AnyMailServer) -> AnyMailServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self: AnyMailServer) -> AnyMailServer:
        """Do what entering the block does.  Call `stop` in any case, such as by ``addClassCleanup``.

        :raises RuntimeError: the server is running already.
        """
        if self._servers:
            raise RuntimeError("this server is running already")
        with contextlib.ExitStack() as block:
            given = dict(self._server_options)
            if self._tls:
                given["ssl_context"] = self._make_tls_context(block)
            if "scram" in self._offers:
                with needed_by("scram=True"):
                    import scramp  # noqa: F401
            block.callback(self._servers.clear)
            self._servers += self._listen(block, given)
            self.port = self._servers[0].server_address[1]
            for server in self._servers:
                thread = threading.Thread(target=server.serve_forever)
                thread.start()
                block.callback(thread.join)
                block.callback(server.shut_listener)
            self._process = os.getpid()
            started[self] = next(moments)
            self._block = block.pop_all()
        return self

    def stop(self) -> None:
        """Do what leaving the block does.  If the server is not running, this does nothing."""
        if os.getpid() == self._process:
            self._block.close()
        else:  # a forked child: port, threads and files are its parent's
            for server in self._servers:
                server.server_close()
            self._servers.clear()

    @property
    def url(self) -> str:
        """The scheme, ``pop3`` or ``pop3s``, with host and port: ``pop3://127.0.0.1:40123``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_tls = self._tls or self._server_options.get("ssl_context") is not None
        return f"{'pop3s' if is_tls else 'pop3'}://{host}:{self.port}"

    def client_certificate(self, username: str) -> str:
        """Return the path of a new PEM file with a certificate of this user and its key, removed when the block ends.

        The throw-away authority issued it.  The name is the certificate's common name.

        :raises KeyError: there is no such user.
        :raises RuntimeError: outside of the block, or without *client_certificates*.
        :raises ValueError: the name has more than 64 characters.
        """
        if self._certificates is None or "certificates" not in self._offers:
            raise RuntimeError("only a server with client_certificates=True has some, while in its block")
        if username not in self.users:
            raise KeyError(username)
        return self._certificates.issue(username)

    def _make_handler(self, peer: object) -> Handler:
        return StoredMailHandler(self, self._begin_session())

    def _listen(self, block: contextlib.ExitStack, given: dict[str, Any]) -> list[_Server]:
        """Listen on one port of each address."""
        first, *others = self._addresses
        tries = 1 if self.port else 9
        while True:
            tries -= 1
            with contextlib.ExitStack() as attempt:
                servers = [attempt.enter_context(_Server((first, self.port), self._make_handler, **given))]
                try:
                    for address in others:
                        port = servers[0].server_address[1]
                        servers.append(attempt.enter_context(_Server((address, port), self._make_handler, **given)))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        if not tries:
                            raise
                        continue  # a free port of one address may be taken on the other
                block.push(attempt.pop_all())
                return servers  # without IPv6 there is nobody to connect to ::1 either

    def _make_tls_context(self, block: contextlib.ExitStack) -> ssl.SSLContext:
        # The end of a forked child would remove a TemporaryDirectory too.
        directory = tempfile.mkdtemp(prefix="popart-")
        block.callback(shutil.rmtree, directory, ignore_errors=True)
        self._certificates = Certificates(directory)
        block.callback(setattr, self, "_certificates", None)
        self.ca_file = self._certificates.ca_file
        return self._certificates.server_context(*self._names, ask_clients="certificates" in self._offers)


class _Connection(Connection):
    session_class = RecordingSession

    def setup(self) -> None:
        super().setup()
        self._sender: RecordingSender = RecordingSender(self._stream, self._place)

    def _hold_session(self, session: Session) -> None:
        assert isinstance(session, RecordingSession)
        self._sender.record = session.client.record
        super()._hold_session(session)


class _Server(Server):
    minimum_timeout = 0.01
    shutdown_grace = 0.1

    def __init__(self, *arguments: Any, **given: Any) -> None:
        for name in LimitOptions.__annotations__.keys() & given.keys():
            setattr(self, name, given.pop(name))
        super().__init__(*arguments, **given)
        self.RequestHandlerClass = _Connection

    def shut_listener(self) -> None:
        """Refuse clients from now on, even if a forked child still has the listening socket open."""
        self.shutdown()
        with contextlib.suppress(OSError):  # not every system can
            self.socket.shutdown(socket.SHUT_RDWR)
