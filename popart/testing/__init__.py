"""A POP3 server for the tests of programs that fetch mail::

    from popart.testing import MailServer

    with MailServer(users={"alice": "secret"}) as server:
        server.deliver("alice", b"Subject: x\\n\\nhello\\n")
        fetch(server.host, server.port)
    assert server.messages("alice") == []

It is `popart.Server` with its mail in memory: it does what any popart server does, until a fault is asked for.  In
pytest the fixtures ``pop3_server`` and ``pop3s_server`` are such servers; ``python3 -m popart.testing`` is one in a
shell.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from email.message import Message
from pathlib import Path
from types import MappingProxyType
from typing import Any

from popart.connection import Connection
from popart.errors import ReportableError
from popart.handler import Handler, MessageReader, ScramCredentials, SupportsClose
from popart.sasl import apop_digest, scram_credentials
from popart.server import Server
from popart.session import Session, State
from popart.testing.faults import Faults, split_command
from popart.testing.maildrop import Maildrop
from popart.wire import Reply

__all__ = ["MailServer", "Maildrop"]

_SECRET = re.compile(r"\A(\s*(?:PASS|(?:APOP|AUTH)\s\S*)\s).+", re.IGNORECASE | re.DOTALL)


class MailServer(Faults):
    """A POP3 server on a free port of this machine, for as long as a ``with`` block.

    It is ready when the block is entered.  When the block is left, all sessions are ended at once, and no port, no
    thread and no file remains, though a process be forked meanwhile.  Mail and records can still be read then, and the
    block may be entered again.  A forked child that leaves the block ends nothing of its parent's.

    *users* maps names to passwords.  With *tls* each connection is TLS from its first octet, which needs trustme,
    of popart's extra ``testing``.  *port* 0 is any free port.  *server_options* are `popart.Server`'s other arguments,
    with a *timeout* that may be as small as 0.01 seconds, and its limits by their names, such as
    ``max_failed_logins=1``.

    USER and PASS, and AUTH PLAIN, sign in with the password.  AUTH offers more if it is asked for: XOAUTH2 and
    OAUTHBEARER with *tokens*, which maps names among *users* to OAuth 2.0 access tokens and may be empty;
    SCRAM-SHA-256 with *scram*, which needs scramp; LOGIN with *login*; EXTERNAL with *client_certificates*, which needs
    *tls*, to clients that present what `client_certificate` makes::

        with MailServer(users={"alice": "secret"}, tokens={"alice": "ya29.x"}, scram=True) as server:

    The methods that make the server fail are those of `popart.testing.faults.Faults`.

    :raises OSError: when entered: the port cannot be had.
    :raises ImportError: when entered: *tls* without trustme, *scram* without scramp.
    :raises ValueError: *client_certificates* without *tls*, or, when entered, a value of *server_options* that
        `popart.Server` does not take.
    """

    host: str
    """Where to connect: ``127.0.0.1``, or ``localhost`` with *tls*.  The certificate is for both."""

    port: int
    """The TCP port, known when the block is entered."""

    ca_file: str | None
    """With *tls*, while in the block: the path of a PEM file with the throw-away authority that clients must trust."""

    users: dict[str, str]
    """Names and passwords.  May be changed at any time."""

    tokens: dict[str, str]
    """Names and OAuth 2.0 access tokens.  May be changed at any time, as when a token expires."""

    commands: list[tuple[str, ...]]
    """What clients sent, in order: ``("alice", "RETR", "1")``.  First the name that the connection had given before,
    or ``""``, then the words of the line: the keyword and AUTH's mechanism in upper case, ``***`` for a password, a
    digest, or a response of AUTH.  A response on a line of its own is ``("", "***")``."""

    errors: list[BaseException]
    """What popart reported of sessions, such as `popart.ClientGoneError` for a client that left without QUIT, and what
    `record_command` raised."""

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
        **server_options: Any,
    ) -> None:
        if client_certificates and not tls:
            raise ValueError("client_certificates=True needs tls=True")
        super().__init__()
        self.users = dict(users)
        self.tokens = dict(tokens or {})
        self.commands = []
        self.errors = []
        self.host = "localhost" if tls else "127.0.0.1"
        self.port = port
        self.ca_file = None
        self._with_tokens = tokens is not None
        self._with_scram = scram
        self._with_login = login
        self._tls = tls
        self._with_certificates = client_certificates
        self._make_certificate: Callable[[str], str] | None = None
        self._wanted_port = port
        self._server_options = server_options
        self._block = contextlib.ExitStack()
        self._process = os.getpid()
        self._maildrops: dict[str, Maildrop] = {}
        self._sessions_changed = threading.Condition()
        self._open_sessions = 0
        self._ended_sessions = 0

    def __enter__(self) -> MailServer:
        with contextlib.ExitStack() as block:
            options = dict(self._server_options)
            if self._tls:
                options["ssl_context"] = self._make_tls_context(block)
            if self._with_scram:
                with _needed_by("scram=True"):
                    import scramp  # noqa: F401
            server = block.enter_context(_Server(("127.0.0.1", self._wanted_port), self._begin_session, **options))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            block.callback(thread.join)
            block.callback(server.server_close)
            block.callback(server.shut_listener)
            self.port = server.server_address[1]
            self._server = server
            self._process = os.getpid()
            self._block = block.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if os.getpid() == self._process:
            self._block.close()
        else:  # a forked child: port, threads and files are its parent's
            self._server.server_close()

    @property
    def url(self) -> str:
        """The scheme, ``pop3`` or ``pop3s``, with host and port: ``pop3://127.0.0.1:40123``."""
        return f"{'pop3s' if self._tls else 'pop3'}://{self.host}:{self.port}"

    def maildrop(self, username: str) -> Maildrop:
        """Return a user's mail.

        :raises KeyError: there is no such user.
        """
        if username not in self.users:
            raise KeyError(username)
        return self._maildrops.setdefault(username, Maildrop())

    def deliver(self, username: str, message: bytes | str | Message) -> str:
        """Add a message to a user's mail and return its unique-id.  Sessions that have signed in do not see it.

        A str is encoded as UTF-8.  Line ends become CRLF, with one at the very end.

        :raises KeyError: there is no such user.
        :raises TypeError: *message* is something else.
        """
        return self.maildrop(username).deliver(message)

    def messages(self, username: str) -> list[bytes]:
        """Return the messages that are left, oldest first, with CRLF line ends.

        :raises KeyError: there is no such user.
        """
        return [octets for _, octets in self.maildrop(username).snapshot()]

    def client_certificate(self, username: str) -> str:
        """Return the path of a new PEM file, which goes with the block: a certificate of this user's, and its key.

        The throw-away authority issued it.  The name is the certificate's common name.

        :raises KeyError: there is no such user.
        :raises RuntimeError: outside of the block, or without *client_certificates*.
        :raises ValueError: the name has more than 64 characters.
        """
        if self._make_certificate is None:
            raise RuntimeError("only a server with client_certificates=True has some, while in its block")
        if username not in self.users:
            raise KeyError(username)
        return self._make_certificate(username)

    def record_command(self, command: tuple[str, ...]) -> None:
        """Add to `commands`.  Override it to learn of each command at once, in its connection's thread.

        If it raises, such as by an assert, the command is not run and the client reads ``-ERR``, after QUIT as the last
        answer.  The exception is in `errors`, but for a `popart.ReportableError`, whose text is what the client reads.
        """
        self.commands.append(command)

    def wait_for_session_end(self, timeout: float = 10.0, *, sessions: int = 1) -> None:
        """Wait until no session is open and at least *sessions* have ended since the server was made.

        A session begins before its greeting.  When it has ended it holds no lock, and has nothing more to record.
        The answer to QUIT comes after the deletions, so wait where a client leaves without it, or for `errors`.

        :raises TimeoutError: that is not so within *timeout* seconds.
        """
        with self._sessions_changed:
            if not self._sessions_changed.wait_for(
                lambda: not self._open_sessions and self._ended_sessions >= sessions, timeout
            ):
                counts = f"{self._open_sessions} sessions open, {self._ended_sessions} ended"
                raise TimeoutError(f"{counts}, after {timeout} seconds")

    def _begin_session(self, peer: object) -> Handler:
        with self._sessions_changed:
            self._open_sessions += 1
        return _MemoryHandler(self)

    def _end_session(self) -> None:
        with self._sessions_changed:
            self._open_sessions -= 1
            self._ended_sessions += 1
            self._sessions_changed.notify_all()

    def _make_tls_context(self, block: contextlib.ExitStack) -> ssl.SSLContext:
        with _needed_by("tls=True"):
            import trustme
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        # A TemporaryDirectory would be removed by the end of a forked child, too.
        directory = tempfile.mkdtemp(prefix="popart-")
        block.callback(shutil.rmtree, directory, ignore_errors=True)
        path = Path(directory, "ca.pem")
        authority.cert_pem.write_to_path(str(path))
        self.ca_file = str(path)
        if self._with_certificates:
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_OPTIONAL

            def make_certificate(username: str) -> str:
                issued = authority.issue_cert(common_name=username)
                with tempfile.NamedTemporaryFile(dir=directory, suffix=".pem", delete=False) as file:
                    file.write(issued.private_key_and_cert_chain_pem.bytes())
                return file.name

            self._make_certificate = make_certificate
            block.callback(setattr, self, "_make_certificate", None)
        return context


@contextlib.contextmanager
def _needed_by(option: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{option} needs {error.name}: pip install {error.name}, or popart's extra [testing]"
        ) from None


class _MemoryHandler(Handler, SupportsClose):
    """Serves a user's maildrop, as it was at sign-in.  It has only the abilities that were asked for."""

    def __init__(self, mail: MailServer) -> None:
        self.mail = mail
        self.allow_sasl_login = mail._with_login
        if mail._with_tokens:
            self.authenticate_token = self._authenticate_token
        if mail._with_scram:
            self.get_scram_credentials = self._get_scram_credentials
        if mail._with_certificates:
            self.authenticate_certificate = self._authenticate_certificate
        self.username = ""
        self._banner = ""
        self._maildrop = Maildrop()
        self._messages: list[tuple[str, bytes]] = []

    def set_banner(self, banner: str) -> None:
        self._banner = banner

    def authenticate_pass(self, username: str, password: str) -> None:
        self._authenticate(username, lambda secret: secret == password)

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        self._authenticate(username, lambda secret: apop_digest(self._banner, secret) == hexdigest)

    def _authenticate_token(self, username: str, token: str) -> None:
        self._authenticate(username, lambda _: self.mail.tokens.get(username) == token)

    def _authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        (name,) = (value for ((key, value),) in certificate["subject"] if key == "commonName")
        self._authenticate(name, lambda _: identity in ("", name))

    def _get_scram_credentials(self, username: str) -> ScramCredentials:
        return _scram_credentials(self._authenticate(username, lambda _: True))

    def _authenticate(self, username: str, fits: Callable[[str], bool]) -> str:
        self.username = username
        self._run_or_fail("sign in", lambda: None)
        secret = self.mail.users.get(username)
        if secret is None or not fits(secret):
            raise ReportableError("wrong name or password")
        return secret

    def lock_maildrop(self) -> None:
        self._maildrop = self.mail.maildrop(self.username)
        self._run_or_fail("lock", self._maildrop.lock)
        self._messages = self._maildrop.snapshot()

    def get_message_count(self) -> int:
        return len(self._messages)

    def get_message_size(self, number: int) -> int:
        return len(self._messages[number - 1][1])

    def get_message_id(self, number: int) -> str:
        return self._messages[number - 1][0]

    def get_message_reader(self, number: int) -> MessageReader:
        return io.BytesIO(self._messages[number - 1][1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        unique_ids = [self.get_message_id(number) for number in numbers]
        self._run_or_fail("commit", lambda: self._maildrop.delete(unique_ids))

    def unlock_maildrop(self) -> None:
        self._maildrop.unlock()

    def handle_session_error(self, error: BaseException) -> None:
        self.mail.errors.append(error)

    def close(self) -> None:
        self.mail._end_session()

    def _run_or_fail(self, step: str, run: Callable[[], None]) -> None:
        self.mail._run_or_fail([step], self.username, run)


# It takes tens of milliseconds.  Users with the same password share a salt by this.
_scram_credentials = functools.lru_cache(scram_credentials)


class _Session(Session):
    """Records each command line, and asks for faults before it is run."""

    def __init__(self, handler: _MemoryHandler, **options: Any) -> None:
        super().__init__(handler, **options)
        self._client = handler

    def respond(self, line: bytes) -> Reply:
        if self.in_exchange:
            words = ["***"]
        else:
            words = split_command(_SECRET.sub(r"\1***", line.decode("utf-8", "backslashreplace")))
        try:
            return self._record_and_run(line, words)
        except BaseException as error:
            self._do_not_run(words)
            return self._explain(error)

    def _record_and_run(self, line: bytes, words: list[str]) -> Reply:
        client = self._client
        username = client.username
        run = super().respond
        record: Callable[..., object] = client.mail.record_command
        recorded = record((username, *words))
        if isinstance(recorded, Coroutine):
            recorded.close()
            raise TypeError("record_command must not be a coroutine function: its body would never run")
        if self.in_exchange:
            return run(line)
        if words[0] == "USER" and self.state is State.AUTHORIZATION:
            client.username = " ".join(words[1:])
        reply: Reply = client.mail._run_or_fail(words, username, lambda: run(line))
        return reply

    def _do_not_run(self, words: list[str]) -> None:
        """See that the session is where the client takes it to be when it reads of a failure."""
        run = super().respond
        if self.in_exchange:
            run(b"*")
        elif words[0] == "QUIT":
            # Leave without deleting anything, so that the lock is free before the client reads of it.
            if self.state is State.TRANSACTION:
                run(b"RSET")
            run(b"QUIT")


class _Connection(Connection):
    session_class = _Session


class _Server(Server):
    minimum_timeout = 0.01
    shutdown_grace = 0.1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # The limits are the class attributes that Server declares.
        for name in Server.__annotations__.keys() & options.keys():
            setattr(self, name, options.pop(name))
        super().__init__(*arguments, **options)
        self.RequestHandlerClass = _Connection

    def shut_listener(self) -> None:
        """Refuse clients from now on, though a child that was forked meanwhile has the listening socket open."""
        self.shutdown()
        with contextlib.suppress(OSError):  # not every system can
            self.socket.shutdown(socket.SHUT_RDWR)
