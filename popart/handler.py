"""What an application implements: this file is the manual.

popart speaks the protocol, a *handler* brings the mail.  ``Server`` asks its factory ``on_new_connection(peer)`` for
one handler per connection, calls that handler from the connection's own thread only, one method at a time, and lets
go of it when the session is over.  State that several handlers share is the application's to guard.

Derive it from `BaseHandler` if one call can list a whole maildrop, and from `Handler` if not.

The order of calls in a session::

    set_banner                                  only with Server(apop=True), before the greeting
    enable_utf8, set_language                   as the client asks; the second in any state
    authenticate_pass, authenticate_apop, authenticate_token, authenticate_certificate
    or get_scram_credentials                    each time the client tries to sign in
    lock_maildrop                               once a sign-in has succeeded
    list_messages                               or get_message_count and get_message_size for each message
    get_message_id, get_message_reader, get_top_reader          as the client asks
    get_languages, get_login_delay, get_expire  as the client asks, in any state, the last of them after sign-in
    delete_messages                             at QUIT, if something is marked as deleted
    unlock_maildrop                             once for each lock_maildrop that returned, however the session ends
    command_finished, session_finished          after each command, and at the end
    close                                       once, last, also when nobody signed in

Any method may raise.  A `ReportableError` is a refusal in words that the client is meant to read.  Whatever else is
raised (SystemExit and KeyboardInterrupt too) is answered with ``-ERR [SYS/TEMP]`` and a fixed text, and given to
`Handler.handle_session_error`; during sign-in and at QUIT it also ends the session.  A result of the wrong kind is
answered with ``-ERR [SYS/PERM]`` and reported as a `HandlerError` in the same way.  So is a coroutine: none of the
methods may be an ``async def``.

The optional abilities below are found by their methods: a handler has one if it has all of its methods, whether from
its class, from a property or from ``__getattr__``.  Two attributes say more of signing in:

``allow_passwords = False``
    No password is taken: USER, PASS, AUTH PLAIN and AUTH LOGIN are neither announced nor accepted.  A `BaseHandler`
    finds out by itself.
``allow_sasl_login = True``
    AUTH LOGIN is offered, for old clients that know no other AUTH.

Names, passwords and tokens are UTF-8, and hold no NUL, CR or LF, whichever way they come.

A handler may block: only its own client waits.  popart cannot interrupt it, so give a backend its own timeouts;
closing the server waits for calls that are under way.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from popart.errors import HandlerError, ReportableError


class MessageReader(Protocol):
    """A message's octets, read piece by piece.  Any binary file object will do.

    Line ends may be LF or CRLF, or both: the client receives CRLF.  Everything else arrives as it was read.
    """

    def read(self, n: int, /) -> bytes:
        """Return up to *n* of the next octets; fewer is fine, more costs memory, none (``b""``) means the end.

        The first call is made before ``+OK`` is sent, so that what it raises becomes an ``-ERR``.  When a later call
        raises, the connection is reset before the final dot, and the client knows that the message is cut off.

        An end is believed only if the size that was announced has been reached, as many a source returns ``b""`` when
        its peer dies: with fewer octets, counted as `popart.wire_size` does, the message is broken.  The client reads
        ``-ERR [SYS/PERM]`` and may go on, or, if the first octets are on their way already, the connection is reset;
        the handler is told of it by a `HandlerError`.  More octets than announced are all sent.
        """
        ...

    def close(self) -> None:
        """Let go of the message.  Called once for every reader, read to its end or not."""
        ...


@runtime_checkable
class Handler(Protocol):
    """The mail of one client, for one connection.  Derive from it: a subclass that forgets a method cannot be built."""

    @abstractmethod
    def set_banner(self, banner: str) -> None:
        """Keep the timestamp of the greeting, angle brackets included, for `authenticate_apop` (RFC 1939 section 7).

        Called before the greeting, and only by a server made with ``apop=True``.  An error turns the client away.
        """

    @abstractmethod
    def authenticate_pass(self, username: str, password: str) -> None:
        """Return if the password is right, otherwise raise (USER and PASS, RFC 1939 section 7).

        AUTH PLAIN (RFC 4616) ends here too, and where a handler says ``allow_sasl_login = True`` so does AUTH LOGIN.
        One that says ``allow_passwords = False`` is never asked.

        Neither argument is ever empty; a password may hold spaces, also at its ends.  Say no with
        `ReportableError`, best with the same text for an unknown user and a wrong password: without a code of its
        own the client reads ``-ERR [AUTH]`` and may try again.  A refusal is held back for a while, and too many end
        the session, but for those with the code SYS/TEMP or SYS/PERM: they say that the backend has failed, not the
        user.  A result other than None counts as an error, so that neither ``return False`` nor a coroutine lets
        anybody in.
        """

    @abstractmethod
    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        """Return if *hexdigest* is right, otherwise raise (APOP, RFC 1939 section 7).

        It is the MD5 digest, 32 lower-case hexadecimal digits, of the banner followed by the user's secret.
        `popart.apop_digest` computes it; compare with `hmac.compare_digest`.  Everything said of `authenticate_pass`
        holds here too.
        """

    @abstractmethod
    def lock_maildrop(self) -> None:
        """Take the exclusive-access lock on the maildrop of the user who just signed in (RFC 1939 section 4).

        From here until `unlock_maildrop` no other session may change the maildrop.  When another session holds it,
        raise `ReportableError`: without a code of its own the client reads ``-ERR [IN-USE]`` and may sign in again.
        """

    @abstractmethod
    def get_message_count(self) -> int:
        """Return how many messages the maildrop holds.

        Asked once, after `lock_maildrop`; messages are numbered from 1 to this count until the session ends.
        Not asked of a handler that satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_size(self, number: int) -> int:
        """Return the octets of message *number* (1 or more) as they go over the wire (RFC 1939 section 11).

        That is with CRLF line ends, one at the very end included, and without dot-stuffing: `popart.wire_size` counts
        them.  popart trusts it, and ends a message that has fewer octets as a broken one: see `MessageReader.read`.
        A size that is too small is harmless.  Asked once for each message, at sign-in, and not at all of a handler that
        satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_id(self, number: int) -> str:
        """Return the unique-id of message *number* for UIDL (RFC 1939 section 7).

        1 to 70 characters from ``!`` to ``~``, no two alike in a maildrop, the same in each session for as long as
        the message exists, never used again for another: clients tell by it what they have fetched already.
        Asked when a client first needs it, once for each message, unless the handler satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_reader(self, number: int) -> MessageReader:
        """Open message *number* for RETR or TOP (RFC 1939 sections 5 and 7).

        TOP reads no further than to its last line.  If the reader ends earlier, popart takes that for the whole message
        and checks its size, as for RETR.
        """

    @abstractmethod
    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Delete these messages for good: all of them, or raise and delete none (RFC 1939 section 6).

        The only call that deletes.  It is made at QUIT, at most once a session, with ascending numbers that are never
        none at all.  The client reads ``+OK`` only after this method and `unlock_maildrop` have returned; it reads
        ``-ERR`` if either raises.  Return when the deletion is durable, from one transaction, one rename or whatever
        your storage offers that survives a killed process: if popart dies in here, the client has had no ``+OK``
        and will come back, and finds either all messages or none of the deleted ones.
        """

    @abstractmethod
    def unlock_maildrop(self) -> None:
        """Release the lock.  Called exactly once for each `lock_maildrop` that returned, however the session ends.

        A killed process calls nothing: take a lock that its owner's death frees (`fcntl.flock`, a database's
        session-level advisory lock), or one that expires.
        """

    @abstractmethod
    def handle_session_error(self, error: BaseException) -> None:
        """Learn of a failure: popart logs nothing itself.

        *error* is an exception of this handler's own, but for a `ReportableError` that the client was told of, or one
        of the `SessionError` classes: `HandlerError`, `ClientGoneError`, `ClientTimeoutError`, `LimitError`.  Each
        failure is told once.  A client that connects and leaves without a command is no failure.  What this method
        raises is dropped.
        """


@runtime_checkable
class SupportsListing(Protocol):
    """A handler that knows its whole maildrop at once."""

    @abstractmethod
    def list_messages(self) -> Iterable[tuple[int, str]]:
        """Yield the size and the unique-id of each message, message 1 first.

        One call right after `Handler.lock_maildrop`, in place of one for the count and two for each message.
        Sizes and ids are what `Handler.get_message_size` and `Handler.get_message_id` say of them.
        """
        ...


class _TakesPasswords:
    """The default of `BaseHandler.allow_passwords`.  With a property no handler could be given a value of its own."""

    def __get__(self, handler: BaseHandler | None, owner: type[BaseHandler]) -> bool:
        method = owner.authenticate_pass if handler is None else handler.authenticate_pass
        return getattr(method, "__func__", method) is not BaseHandler.authenticate_pass


class BaseHandler(Handler, SupportsListing):
    """A handler that lists its maildrop by one call.  Derive from it, and write only what popart cannot know.

    Six methods are abstract: `lock_maildrop`, `list_messages`, `get_message_reader`, `delete_messages`,
    `unlock_maildrop` and `handle_session_error`.  To let anybody in, also override `authenticate_pass`, or add
    another way to sign in, such as `SupportsTokens`.

    The rest is done: `banner` is kept, APOP is refused, passwords are taken only if `authenticate_pass` is
    overridden, and the count, the sizes and the ids come from `list_messages`.  There is no ``__init__`` to call.

    popart calls `list_messages`, and never asks for the count, a size or an id.  Those are for other code, such as a
    wrapper or a test, and it asks for the count first, as popart would.  They call `list_messages` once more, and mail
    may have come or gone since popart called it: your own methods should look into what they have kept themselves.
    """

    banner: str = ""
    """The timestamp of the greeting, as `set_banner` was given it; ``""`` if the server does not offer APOP."""

    allow_passwords: bool = cast(bool, _TakesPasswords())
    """True if `authenticate_pass` is overridden: by a subclass, a mixin or an attribute of the handler.

    If a subclass or a handler sets it, that holds.
    """

    __listing: Sequence[tuple[int, str]] = ()
    __told_of_apop = False

    def set_banner(self, banner: str) -> None:
        """Keep the timestamp in `banner`."""
        self.banner = banner

    def authenticate_pass(self, username: str, password: str) -> None:
        """Refuse.  popart does not call it unless it is overridden."""
        raise ReportableError("passwords are not taken here")

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        """Refuse with the code SYS/PERM, so that the client may sign in by other means and no password seems wrong.

        A server made with ``apop=True`` whose handler does not override this method can only be an oversight.
        `handle_session_error` is told so by a `HandlerError`, once for each handler.
        """
        if self.banner and not self.__told_of_apop:
            self.__told_of_apop = True
            with suppress(BaseException):
                name = type(self).__name__
                self.handle_session_error(HandlerError(f"apop=True needs {name}.authenticate_apop to be overridden"))
        raise ReportableError("APOP is not taken here", code="SYS/PERM")

    def get_message_count(self) -> int:
        """Ask `list_messages`, and keep what it says for sizes and ids until the count is asked for again."""
        return len(self.__list())

    def get_message_size(self, number: int) -> int:
        """Return the size from the listing that is kept."""
        return (self.__listing or self.__list())[number - 1][0]

    def get_message_id(self, number: int) -> str:
        """Return the unique-id from the listing that is kept."""
        return (self.__listing or self.__list())[number - 1][1]

    def __list(self) -> Sequence[tuple[int, str]]:
        self.__listing = list(self.list_messages())
        return self.__listing


@runtime_checkable
class SupportsTop(Protocol):
    """A handler that can read the beginning of a message without opening all of it."""

    @abstractmethod
    def get_top_reader(self, number: int, lines: int) -> MessageReader:
        """Open message *number* for TOP: its header, the blank line and the first *lines* lines of its body.

        Returning more is harmless, as popart cuts off what is too much.  Some clients fetch whole messages with
        ``TOP n 99999999``.  How long the beginning of a message is nobody has announced: where this reader returns
        ``b""``, popart takes that for its end, so raise if your source may break off.
        """
        ...


@runtime_checkable
class SupportsTokens(Protocol):
    """A handler that signs users in by OAuth 2.0 access tokens: AUTH OAUTHBEARER (RFC 7628) and XOAUTH2."""

    @abstractmethod
    def authenticate_token(self, username: str, token: str) -> None:
        """Return if *token* is valid, is meant for this service and belongs to *username*, otherwise raise.

        The token is visible ASCII and as the client sent it: popart has checked nothing of it.  Neither argument is
        ever empty.  Everything said of `Handler.authenticate_pass` holds here too; after a `ReportableError` the
        client is first told, as both mechanisms demand, that its token is not valid, and then reads the error.
        """


@dataclass(frozen=True, slots=True, repr=False)
class ScramCredentials:
    """What a server keeps of a user's password for SCRAM-SHA-256 (RFC 5802 section 3, RFC 7677).

    `popart.scram_credentials` makes them from a password.  The keys are octets, not base64.  Neither gives away the
    password, but guard them as you would a hash: the server key lets its holder pose as this server.

    :raises ValueError: *salt* has less than 12 octets, *iterations* is less than 4096, or a key has not 32 octets.
    """

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    def __post_init__(self) -> None:
        if len(self.salt) < 12:
            raise ValueError("a salt has at least 12 octets")
        if self.iterations < 4096:
            raise ValueError("SCRAM-SHA-256 takes at least 4096 iterations")
        if not len(self.stored_key) == len(self.server_key) == 32:
            raise ValueError("the keys of SCRAM-SHA-256 have 32 octets each")


@runtime_checkable
class SupportsScram(Protocol):
    """A handler that can sign users in without ever seeing a password: AUTH SCRAM-SHA-256 (RFC 7677).

    Offered only where the library scramp is installed: popart's extra ``scram``, or ``pip install scramp``.
    """

    @abstractmethod
    def get_scram_credentials(self, username: str) -> ScramCredentials:
        """Return what is kept of this user's password, and keep the name: nothing is proved yet.

        popart lets the client prove that it knows the password.  If it does, `Handler.lock_maildrop` is the next call;
        if not, the handler is not told.  *username* is never empty, and is prepared with SASLprep (RFC 4013).

        For a user who is unknown, or has no such credentials, raise `ReportableError` without a code, or with AUTH:
        the exchange goes on with made-up credentials, and the client reads at its end what it reads after a wrong
        password.  They have a salt of 16 octets, the same for a name as long as the server's *scram_decoy_key* is,
        and as many iterations as `popart.scram_credentials` takes by default: a user whose own differ can be told
        from one who does not exist.  A `ReportableError` with another code is a refusal that the client reads at once.

        SASLprep knows the characters of Unicode 3.2.  A name with a later one, such as an emoji, is not asked for:
        its exchange is that of a user who is unknown.
        """


@runtime_checkable
class SupportsCertificates(Protocol):
    """A handler that signs users in by their TLS client certificates: AUTH EXTERNAL (RFC 4422 appendix A)."""

    @abstractmethod
    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        """Return if the holder of *certificate* may act as *identity*, otherwise raise.

        *identity* is who the client asks to be.  It may be empty: then derive the user from the certificate.
        *certificate* is what `ssl.SSLSocket.getpeercert` says of it.  It was verified against what the server's
        ``ssl_context`` trusts; which names in it stand for which user is for you to decide.  EXTERNAL is offered only
        to clients that presented one.  Everything else said of `Handler.authenticate_pass` holds here too.
        """


@runtime_checkable
class SupportsUTF8(Protocol):
    """A handler whose messages may have UTF-8 in their headers (RFC 6532): the command UTF8 (RFC 6856 section 2)."""

    @abstractmethod
    def enable_utf8(self) -> None:
        """Learn, before sign-in, that the client takes such messages as they are.  Some say so twice.

        To a client that has not asked for UTF-8 they must not be sent so.  popart passes every octet of a reader
        through, so that is the handler's to see to: return a surrogate that is ASCII, and its size, or raise
        ``ReportableError("...", code="UTF8")`` when it is asked for a reader.  Raising here refuses the command.

        From here on the texts of `ReportableError` are sent in UTF-8.  User names and passwords are UTF-8 anyway;
        popart does not prepare them with SASLprep (RFC 4013).
        """
        ...


@runtime_checkable
class SupportsLanguages(Protocol):
    """A handler that can refuse in several languages: the command LANG (RFC 6856 section 3)."""

    @abstractmethod
    def get_languages(self) -> Mapping[str, str]:
        """Return the languages: for each tag (RFC 5646) the language's name in itself, such as ``{"de": "Deutsch"}``.

        The first is the one that ``LANG *`` chooses.
        """
        ...

    @abstractmethod
    def set_language(self, tag: str) -> None:
        """Learn which of the tags the client has chosen.

        From here on the texts of `ReportableError` are to be in that language, and are sent in UTF-8.  popart's own
        few texts stay English.
        """
        ...


@runtime_checkable
class SupportsLoginDelay(Protocol):
    """A handler that wants time to pass between sign-ins: LOGIN-DELAY in CAPA (RFC 2449 section 6.5).

    It is the handler that insists on it: by ``ReportableError("...", code="LOGIN-DELAY")`` when a user comes too soon.
    """

    @abstractmethod
    def get_login_delay(self) -> int:
        """Return the seconds: before sign-in the most that any user has to wait, then what this user has to."""
        ...


@runtime_checkable
class SupportsExpire(Protocol):
    """A handler that deletes old mail by itself, after a time that depends on the user (RFC 2449 section 6.7)."""

    @abstractmethod
    def get_expire(self) -> int | None:
        """Return for how many days the user who has signed in may leave messages here; None for ever.

        Before sign-in CAPA announces the *expire* of the `Server`, which should be the least of any user.
        """
        ...


@runtime_checkable
class SupportsMonitoring(Protocol):
    """A handler that counts: popart tells it what was done and how long it took, and never what was said."""

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        """Learn that a command has been answered; called for each, in the connection's thread, before the next is run.

        *verb* is a command that popart knows, in capitals, or ``""``.  *outcome* is how the answer began, ``"+OK"`` or
        ``"-ERR"``, or ``"lost"`` where it could not be given whole.  *octets* is the length of the answer as it is
        on the wire, without TLS, and an upper bound if it was lost; *seconds* is the time from the command's turn
        until the system had taken all of the answer.  The steps of AUTH are one command, the client's time for its
        responses included.

        The answers to pipelined commands are sent one by one when somebody counts, and otherwise together.
        """
        ...

    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        """Learn that the session is over: how many commands it had, the octets of all answers, and how long it took."""
        ...


@runtime_checkable
class SupportsClose(Protocol):
    """A handler that holds something for as long as its session lasts."""

    def close(self) -> None:
        """Learn that the session is over, signed in or not.  The last call to the handler, made exactly once."""
        ...
