"""What an application implements: this file is the manual.

popart speaks the protocol; a *handler* brings the mail.  ``Server`` asks its factory ``on_new_connection(peer)`` for
one handler per connection.  It calls that handler only from the connection's own thread, one method at a time.  It lets
go of the handler when the session is over.  You must guard state that several handlers share.

Derive your handler from `BaseHandler` if one call can list a whole maildrop, and from `Handler` if not.

The order of calls in a session::

    set_banner                only with Server(apop=True), before the greeting
    enable_utf8, set_language as the client asks; the first before sign-in only
    authenticate_pass, authenticate_apop, authenticate_token,
    authenticate_certificate or get_scram_credentials
                              each time the client tries to sign in
    get_mechanisms            for CAPA, in any state, and for AUTH
    authorize                 once the user is known, if the client asks to act as another
    lock_maildrop             once a sign-in has succeeded
    list_messages             or get_message_count, and get_message_size for each
    get_message_id, get_message_reader, get_top_reader
                              as the client asks
    get_languages, get_login_delay, get_expire
                              as the client asks, in any state; the last after sign-in only
    delete_messages           at QUIT, if something is marked as deleted
    unlock_maildrop           once for each lock_maildrop that returned, however the
                              session ends
    command_finished          after each command
    session_finished          at the end
    close                     once, last, also when nobody signed in

Any method may raise.  A `popart.ReportableError` is a refusal in words that the client may read.  popart answers any
other exception (SystemExit and KeyboardInterrupt too) with ``-ERR [SYS/TEMP]`` and a fixed text, and gives it to
`popart.Handler.handle_session_error`.  During sign-in and at QUIT it also ends the session.  popart answers a result of
the wrong kind with ``-ERR [SYS/PERM]``, and reports it as a `popart.HandlerError` in the same way.  A coroutine is such
a result: no method may be an ``async def``.

popart finds the optional abilities below by their methods.  A handler has an ability if it has all of the ability's
methods, whether they come from a class, a property or ``__getattr__``.  Two attributes say more about signing in:

``allow_passwords = False``
    popart takes no password: it neither announces nor accepts USER, PASS, AUTH PLAIN or AUTH LOGIN.  A `BaseHandler`
    sets it by itself: see `popart.BaseHandler.allow_passwords`.
``allow_sasl_login = True``
    AUTH LOGIN is offered, for old clients that know no other AUTH.

In every way to sign in, names, passwords and tokens are UTF-8 and hold no NUL, CR or LF.  popart does not check what a
client sends in a mechanism of the handler's own.

A handler may block: only its own client waits.  popart cannot interrupt it, so give your backends their own timeouts.
When the server closes, it waits for running calls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from popart.errors import HandlerError, ReportableError


class MessageReader(Protocol):
    """A message's octets, read piece by piece.  Any binary file object will do.

    Open files with ``open(path, "rb", buffering=0)``.  popart asks for large pieces, so a buffer costs time and saves
    nothing.

    Line ends may be LF or CRLF, or both: the client receives CRLF.  Everything else arrives as you return it.
    """

    def read(self, n: int, /) -> bytes:
        """Return up to *n* of the next octets.  Fewer is fine, more costs memory, and none (``b""``) means the end.

        popart makes the first call before it sends ``+OK``.  If that call raises, the client reads ``-ERR``.  If the
        first call returns fewer than 32,768 octets, the same holds for the second.  If a later call raises, popart
        resets the connection before the final dot, and the client knows that the message is cut off.

        popart accepts an end only if the announced size has been reached, because many sources return ``b""`` when
        their peer dies.  A message with fewer octets, as `popart.wire_size` counts them, is broken.  If none of it has
        left yet, the client reads ``-ERR [SYS/PERM]`` and may go on.  Otherwise popart resets the connection.
        `Handler.handle_session_error` gets a `HandlerError`.  If there are more octets than announced, popart sends all
        of them.
        """

    def close(self) -> None:
        """Let go of the message.  Called once for every reader, whether it was read to its end or not."""


@runtime_checkable
class Handler(Protocol):
    """One client's mail, for one connection.  Derive from it: a subclass that lacks a method cannot be instantiated."""

    @abstractmethod
    def set_banner(self, banner: str) -> None:
        """Keep the timestamp of the greeting, angle brackets included, for `authenticate_apop` (RFC 1939 section 7).

        Called before the greeting, and only by a server made with ``apop=True``.  An error turns the client away.
        """

    @abstractmethod
    def authenticate_pass(self, username: str, password: str) -> None:
        """Return if the password is right, otherwise raise (USER and PASS, RFC 1939 section 7).

        AUTH PLAIN (RFC 4616) also calls this method.  If a handler says ``allow_sasl_login = True``, AUTH LOGIN does
        too.  If a handler says ``allow_passwords = False``, popart never calls it.

        Neither argument is ever empty.  A password may hold spaces, even at its ends.  To refuse, raise
        `ReportableError`, preferably with the same text for an unknown user and a wrong password.  If it has no code,
        the client reads ``-ERR [AUTH]`` and may try again.  popart delays the answer to a refusal, and too many
        refusals end the session.  This does not apply to refusals with the code SYS/TEMP or SYS/PERM: they say that the
        backend has failed, not the user.  A result other than None counts as an error, so neither ``return False`` nor
        a coroutine lets anybody in.
        """

    @abstractmethod
    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        """Return if *hexdigest* is right, otherwise raise (APOP, RFC 1939 section 7).

        *hexdigest* is the MD5 digest of the banner followed by the user's secret, as 32 lower-case hexadecimal digits.
        `popart.apop_digest` computes it; compare with `hmac.compare_digest`.  Everything said about `authenticate_pass`
        holds here too.
        """

    @abstractmethod
    def lock_maildrop(self) -> None:
        """Take the exclusive-access lock on the maildrop of the user who just signed in (RFC 1939 section 4).

        From here until `unlock_maildrop` no other session may change the maildrop.  If another session holds the lock,
        raise `ReportableError`.  If that has no code, the client reads ``-ERR [IN-USE]`` and may sign in again.
        """

    @abstractmethod
    def get_message_count(self) -> int:
        """Return how many messages the maildrop holds (STAT, RFC 1939 section 5).

        popart asks once, after `lock_maildrop`.  Messages are numbered from 1 to this count until the session ends.
        popart does not ask a handler that satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_size(self, number: int) -> int:
        """Return the size in octets of message *number* (1 or more) as it goes over the wire (RFC 1939 section 11).

        Count CRLF line ends, including one at the very end, but no dot-stuffing: `popart.wire_size` counts this way.
        popart trusts the size, and treats a message with fewer octets as broken: see `MessageReader.read`.  A size that
        is too small is harmless.  popart asks once for each message, at sign-in.  It does not ask a handler that
        satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_id(self, number: int) -> str:
        """Return the unique-id of message *number* for UIDL (RFC 1939 section 7).

        An id has 1 to 70 characters from ``!`` to ``~``.  No two ids in a maildrop are alike.  A message has the same
        id in each session for as long as it exists, and no other message ever gets that id: clients use it to know what
        they have fetched already.  popart asks for it once, when a client first needs it, and for all ids when a client
        lists them.  It does not ask a handler that satisfies `SupportsListing`.
        """

    @abstractmethod
    def get_message_reader(self, number: int) -> MessageReader:
        """Open message *number* for RETR or TOP (RFC 1939 sections 5 and 7).

        For TOP, popart stops reading after the last line that the client wants.  If the reader ends before that, popart
        takes this as the end of the message and checks the size, as for RETR.
        """

    @abstractmethod
    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Delete these messages for good: all of them, or raise and delete none (RFC 1939 section 6).

        This is the only call that deletes.  popart makes it at QUIT, at most once a session.  The numbers are
        ascending, and there is at least one.  The client reads ``+OK`` only after this method and `unlock_maildrop`
        have returned, and ``-ERR`` if either raises.  Return when the deletion is durable.  Use one transaction, one
        rename, or whatever your storage offers that survives a killed process.  If the process dies during this call,
        the client has read no ``+OK`` and will come back.  It must then find all or none of the messages deleted.
        """

    @abstractmethod
    def unlock_maildrop(self) -> None:
        """Release the lock (RFC 1939 section 6).  Called exactly once for each `lock_maildrop` that returned, however
        the session ends.

        A killed process calls nothing.  So take a lock that is freed when its owner dies (`fcntl.flock`, a database's
        session-level advisory lock), or one that expires.
        """

    @abstractmethod
    def handle_session_error(self, error: BaseException) -> None:
        """Learn of a failure: popart logs nothing itself.

        *error* is an exception that this handler raised, except a `ReportableError` that the client was told of.  Or it
        is one of the `SessionError` classes: `HandlerError`, `ClientGoneError`, `ClientTimeoutError`, `LimitError`.
        popart reports each failure once.  A client that connects and leaves without a command is not a failure.  popart
        ignores what this method raises.
        """


@runtime_checkable
class SupportsListing(Protocol):
    """A handler that can list its whole maildrop at once."""

    @abstractmethod
    def list_messages(self) -> Iterable[tuple[int, str]]:
        """Yield the size and the unique-id of each message, message 1 first.

        popart makes this one call right after `Handler.lock_maildrop`, in place of one for the count and two for each
        message.  Sizes and ids must be as `Handler.get_message_size` and `Handler.get_message_id` describe them.
        """


class _TakesPasswords:
    """The default of `BaseHandler.allow_passwords`.  With a property no handler could be given a value of its own."""

    def __get__(self, handler: BaseHandler | None, owner: type[BaseHandler]) -> bool:
        method = owner.authenticate_pass if handler is None else handler.authenticate_pass
        return getattr(method, "__func__", method) is not BaseHandler.authenticate_pass


class BaseHandler(Handler, SupportsListing):
    """A handler that lists its maildrop in one call.  Derive from it, and write only what popart cannot know.

    Six methods are abstract: ``lock_maildrop``, ``list_messages``, ``get_message_reader``, ``delete_messages``,
    ``unlock_maildrop`` and ``handle_session_error``.  To let anybody in, also override `authenticate_pass`, or add
    another way to sign in, such as `SupportsTokens` or `SupportsMechanisms`.

    The rest is done: `banner` is kept, APOP is refused, passwords are taken only if `authenticate_pass` is
    overridden, and the count, the sizes and the ids come from ``list_messages``.  There is no ``__init__`` to call.

    popart calls ``list_messages`` once, at sign-in, and never asks for the count, a size or an id.  Your own methods
    may: from sign-in on, `get_message_count`, `get_message_size` and `get_message_id` answer from that one listing.
    Before sign-in, each `get_message_count` makes a new listing, and the sizes and ids come from it.  The same holds if
    the handler is wrapped and popart does not see that it lists.
    """

    banner: str = ""
    """The timestamp of the greeting, as `set_banner` was given it; ``""`` if the server does not offer APOP."""

    allow_passwords: bool = cast(bool, _TakesPasswords())
    """True if `authenticate_pass` is overridden: by a subclass, a mixin or an attribute of the handler.

    A value that a subclass or a handler sets takes precedence.
    """

    __listing: tuple[Sequence[int], Sequence[str]] | None = None
    __is_kept = False
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
        ``handle_session_error`` gets a `HandlerError` that says so, once for each handler.
        """
        if self.banner and not self.__told_of_apop:
            self.__told_of_apop = True
            with suppress(BaseException):
                name = type(self).__name__
                self.handle_session_error(HandlerError(f"apop=True needs {name}.authenticate_apop to be overridden"))
        raise ReportableError("APOP is not taken here", code="SYS/PERM")

    def get_message_count(self) -> int:
        """Return how many messages the session's listing has."""
        if not self.__is_kept:
            self.__listing = None
        sizes, _ = self.__known()
        return len(sizes)

    def get_message_size(self, number: int) -> int:
        """Return the size that the session's listing gives message *number*."""
        return self.__known()[0][number - 1]

    def get_message_id(self, number: int) -> str:
        """Return the unique-id that the session's listing gives message *number*."""
        return self.__known()[1][number - 1]

    def __known(self) -> tuple[Sequence[int], Sequence[str]]:
        if self.__listing is None:
            listing = list(self.list_messages())
            self.__listing = [size for size, _ in listing], [unique_id for _, unique_id in listing]
        return self.__listing

    def _keep_listing(self, sizes: Sequence[int], ids: Sequence[str]) -> None:
        """Keep what popart has made of the listing at sign-in: another listing might number other messages."""
        self.__listing, self.__is_kept = (sizes, ids), True


@runtime_checkable
class SupportsTop(Protocol):
    """A handler that can read the beginning of a message without opening all of it: TOP (RFC 1939 section 7)."""

    @abstractmethod
    def get_top_reader(self, number: int, lines: int) -> MessageReader:
        """Open message *number* for TOP: its header, the blank line and the first *lines* lines of its body.

        You may return more: popart cuts off the rest.  Some clients fetch whole messages with ``TOP n 99999999``.  No
        size is announced for the beginning of a message.  If this reader returns ``b""``, popart takes that as the end.
        So raise an exception if your source breaks off.
        """


@runtime_checkable
class SupportsTokens(Protocol):
    """A handler that signs users in by OAuth 2.0 access tokens: AUTH OAUTHBEARER (RFC 7628) and XOAUTH2."""

    @abstractmethod
    def authenticate_token(self, username: str, token: str) -> None:
        """Return if *token* is valid, is meant for this service and belongs to *username*, otherwise raise.

        The token is visible ASCII, as the client sent it: popart does not check it.  Neither argument is ever empty.
        Everything said about `Handler.authenticate_pass` holds here too.  After a `ReportableError` the client first
        reads that its token is not valid, as both mechanisms demand, and then reads the error.
        """


_MIN_SALT_SIZE = 12
_MIN_ITERATIONS = 4096  # RFC 7677 section 4
_KEY_SIZE = 32  # of SHA-256


@dataclass(frozen=True, slots=True, repr=False)
class ScramCredentials:
    """What a server keeps of a user's password for SCRAM-SHA-256 (RFC 5802 section 3, RFC 7677).

    `popart.scram_credentials` makes them from a password.  The keys are octets, not base64.  Nobody can read the
    password from them.  Guard them like a hash all the same: whoever has the server key can pose as this server.

    :raises ValueError: *salt* has fewer than 12 octets, *iterations* is less than 4096, or a key is not 32 octets.
    """

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    def __post_init__(self) -> None:
        if len(self.salt) < _MIN_SALT_SIZE:
            raise ValueError(f"a salt has at least {_MIN_SALT_SIZE} octets")
        if self.iterations < _MIN_ITERATIONS:
            raise ValueError(f"SCRAM-SHA-256 takes at least {_MIN_ITERATIONS} iterations")
        if not len(self.stored_key) == len(self.server_key) == _KEY_SIZE:
            raise ValueError(f"the keys of SCRAM-SHA-256 have {_KEY_SIZE} octets each")


@runtime_checkable
class SupportsScram(Protocol):
    """A handler that can sign users in without ever seeing a password: AUTH SCRAM-SHA-256 (RFC 7677).

    Offered only where the library scramp is installed: popart's extra ``scram``, or ``pip install scramp``.
    """

    @abstractmethod
    def get_scram_credentials(self, username: str) -> ScramCredentials:
        """Return this user's credentials, and keep the name: nothing is proved yet.

        popart lets the client prove that it knows the password.  If it does, popart calls `Handler.lock_maildrop`
        next.  If not, popart does not tell the handler.  *username* is never empty, and is prepared with SASLprep
        (RFC 4013).

        If a user is unknown, or has no such credentials, raise `ReportableError` without a code, or with AUTH.  The
        exchange then goes on with made-up credentials, and at its end the client reads the same as after a wrong
        password.  The made-up salt has 16 octets.  It is the same for a name as long as the server's *scram_decoy_key*
        is the same.  The number of iterations is the default of `popart.scram_credentials`: a client can tell a user
        with another number from one who does not exist.  The client reads a `ReportableError` with another code at
        once.

        SASLprep knows the characters of Unicode 3.2.  If a name has a later one, such as an emoji, popart does not call
        this method, and treats the user as unknown.
        """


@runtime_checkable
class SupportsCertificates(Protocol):
    """A handler that signs users in by their TLS client certificates: AUTH EXTERNAL (RFC 4422 appendix A)."""

    @abstractmethod
    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        """Return if the holder of *certificate* may act as *identity*, otherwise raise.

        *identity* is the name that the client wants.  If it is empty, derive the user from the certificate.
        *certificate* is the result of `ssl.SSLSocket.getpeercert`.  It was verified against the authorities that the
        server's ``ssl_context`` trusts.  You decide which names in it stand for which user.  popart offers EXTERNAL
        only to clients that presented a certificate.  Everything else said about `Handler.authenticate_pass` holds here
        too.
        """


@runtime_checkable
class SupportsMechanisms(Protocol):
    """A handler that brings SASL mechanisms of its own, such as CRAM-MD5 (RFC 4422, RFC 5034)."""

    @abstractmethod
    def get_mechanisms(self) -> Mapping[str, Callable[[], Generator[bytes, bytes, str]]]:
        """Return the mechanisms: for each name a function that begins an exchange, usually a method with ``yield``.

        popart calls this for CAPA, for a bare AUTH, and for AUTH with a mechanism that popart does not have.  A name
        has 1 to 20 characters: capital letters, digits, hyphens, underscores.  It is none of EXTERNAL, SCRAM-SHA-256,
        OAUTHBEARER, XOAUTH2, PLAIN and LOGIN, even where popart does not offer that one.  All names together, with a
        space before each, have at most 400 characters.  Anything else is a `HandlerError`.

        An exchange is a generator.  It yields the server's challenges and is sent the client's responses, as octets:
        popart does base64.  If the client speaks first in the mechanism, the first challenge is ``b""``.  popart does
        not send it if the client sends its response with AUTH.  If the first challenge is not empty, popart refuses
        such an initial response (RFC 5034 section 4).  A challenge or a response has at most 9,216 octets.  popart does
        not check what is in them.

        To let the user in, return the user's name, which is not empty and holds no NUL, CR or LF.  Keep it yourself:
        popart does not pass it to `Handler.lock_maildrop`, which comes next.  To refuse, raise `ReportableError`.  What
        `Handler.authenticate_pass` says about refusals holds here too.  A challenge that is not bytes, or a result that
        is not such a name, is a `HandlerError` and lets nobody in.

        popart closes the generator (GeneratorExit) if the client cancels, leaves or sends something that is not base64,
        if the session's time is up, or if the server closes.  `Server.login_timeout` bounds all of an exchange, however
        many challenges there are.

        popart cannot know what a client shows in your mechanisms.  So a server with *allow_cleartext* False offers them
        over TLS only.  ``allow_passwords`` does not apply to them.
        """


@runtime_checkable
class SupportsAuthorization(Protocol):
    """A handler whose users may read others' mail: authorization identities in AUTH (RFC 4422 section 3.4.1)."""

    @abstractmethod
    def authorize(self, username: str, identity: str) -> None:
        """Return if *username* may act as *identity*, otherwise raise.

        popart asks after *username* has signed in by AUTH PLAIN or SCRAM-SHA-256, if the client named a different
        identity.  *identity* is as the client sent it, and never empty.  If this method returns, the session is
        *identity*'s: keep that name, because popart does not pass it to `Handler.lock_maildrop`, which comes next.
        Everything said about `Handler.authenticate_pass` holds here too: the client reads AUTH for a `ReportableError`
        without a code, and that counts as a failed login.

        If a handler lacks this method, popart refuses other identities before it checks the password.  OAUTHBEARER and
        EXTERNAL have one name only: `SupportsTokens` and `SupportsCertificates` decide about it.
        """


@runtime_checkable
class SupportsUTF8(Protocol):
    """A handler whose messages may have UTF-8 in their headers (RFC 6532): the command UTF8 (RFC 6856 section 2)."""

    @abstractmethod
    def enable_utf8(self) -> None:
        """Learn, before sign-in, that the client takes such messages as they are.  Some clients say so twice.

        You must not send them to a client that has not asked for UTF-8.  popart passes every octet of a reader through,
        so your handler must see to it.  For a client without UTF-8, return a surrogate in ASCII, and the surrogate's
        size, or raise ``ReportableError("...", code="UTF8")`` when popart asks for a reader.  If this method raises,
        the command is refused.

        After this call popart sends the texts of `ReportableError` in UTF-8.  User names and passwords are UTF-8
        anyway.  popart prepares them with SASLprep (RFC 4013) only for SCRAM-SHA-256.
        """


@runtime_checkable
class SupportsLanguages(Protocol):
    """A handler that can refuse in several languages: the command LANG (RFC 6856 section 3)."""

    @abstractmethod
    def get_languages(self) -> Mapping[str, str]:
        """Return the languages: for each tag (RFC 5646) the language's own name, such as ``{"de": "Deutsch"}``.  A name
        has at most 64 printable characters.  Anything else is a `HandlerError`.

        ``LANG *`` chooses the first.  ``LANG de`` chooses ``de`` if it is there, otherwise the first that begins with
        ``de-``.
        """

    @abstractmethod
    def set_language(self, tag: str) -> None:
        """Learn which tag the client has chosen.

        After this call write the texts of `ReportableError` in that language: popart sends them in UTF-8.  popart's own
        few texts stay English.
        """


@runtime_checkable
class SupportsLoginDelay(Protocol):
    """A handler that wants time to pass between sign-ins: LOGIN-DELAY in CAPA (RFC 2449 section 6.5).

    The handler enforces it: it raises ``ReportableError("...", code="LOGIN-DELAY")`` if a user comes too soon.
    """

    @abstractmethod
    def get_login_delay(self) -> int:
        """Return whole seconds: before sign-in the most that any user must wait, then what this user must wait."""


@runtime_checkable
class SupportsExpire(Protocol):
    """A handler that deletes old mail itself, after a time that depends on the user (RFC 2449 section 6.7)."""

    @abstractmethod
    def get_expire(self) -> int | None:
        """Return how many days the user who has signed in may leave messages here; None means for ever.

        Before sign-in CAPA announces the *expire* of the `Server`, which should be the smallest of all users.
        """


@runtime_checkable
class SupportsMonitoring(Protocol):
    """A handler that counts.  popart tells it what was done and how long it took, and never what was said."""

    @abstractmethod
    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        """Learn that a command was answered.  Called for each command, in the connection's thread, before the next one
        runs.

        *verb* is a command that popart knows, in capitals, or ``""``.  *outcome* is the beginning of the answer,
        ``"+OK"`` or ``"-ERR"``, or ``"lost"`` if popart could not send all of it.  *octets* is the length of the answer
        on the wire, without TLS; if it was lost, an upper bound.  *seconds* is the time from the command's turn until
        the system had taken all of the answer.  The steps of AUTH count as one command, and *seconds* includes the
        client's time for its responses.

        For such a handler popart sends the answers to pipelined commands one by one, for others together.
        """

    @abstractmethod
    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        """Learn of the session's end: how many commands it had, the octets of all answers, and the seconds it took."""


@runtime_checkable
class SupportsClose(Protocol):
    """A handler that holds something as long as its session lasts."""

    @abstractmethod
    def close(self) -> None:
        """Learn that the session is over, whether the client signed in or not.  popart calls it exactly once, last."""
