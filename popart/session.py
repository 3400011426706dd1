"""The protocol: states, commands and their replies (RFC 1939, RFC 2449, RFC 5034, RFC 6856).

A `Session` knows no sockets, threads or clocks.  It is given one command line at a time and returns the reply; what
can fail in a command fails before the reply exists, so a message is opened and first read here.  Commands never write.
"""

from __future__ import annotations

import enum
import re
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from popart.errors import (
    BadCommandError,
    BrokenMessageError,
    HandlerError,
    LimitError,
    ReportableError,
)
from popart.handler import (
    Handler,
    MessageReader,
    SupportsExpire,
    SupportsLanguages,
    SupportsLoginDelay,
    SupportsTop,
    SupportsUTF8,
    ability,
    close_coroutines,
    expect_done,
    expect_none,
    tell_end,
    tell_error,
)
from popart.maildrop import MAX_SIZE, Maildrop, check_numbers, is_number, show
from popart.sasl import (
    CLEARTEXT_MECHANISMS,
    DECOY_KEY,
    PASSWORD_MECHANISMS,
    Exchange,
    StoppedError,
    mechanisms,
    read_base64,
)
from popart.wire import CHUNK_SIZE, MAX_AUTH_LINE, MAX_LINE, Reply, ShortMessageError, encode_message, err, ok

MAX_LANGUAGE_NAME = 64
"""Characters of a language's name: more than any has."""

FIRST_LOGIN_DELAY = 0.25
"""Seconds that the answer to a first failed login is held back; each further one takes twice as long..."""

LOGIN_DELAY_DOUBLINGS = 6
"""... up to 16 seconds."""

_PASSWORD_COMMANDS = {"USER", "PASS"}
_PASSWORD_WAYS = PASSWORD_MECHANISMS | _PASSWORD_COMMANDS
_CLEARTEXT_WAYS = CLEARTEXT_MECHANISMS | _PASSWORD_COMMANDS
_BACKEND_FAILED = re.compile(r"SYS/(TEMP|PERM)(/.*)?", re.IGNORECASE)  # RFC 3206: not that the user is the wrong one
_NOT_IN_ARGUMENTS = re.compile(rb"[\0\r\n]")
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,7}")  # RFC 5646 section 2.1, roughly
_HEX_DIGEST = re.compile(r"[0-9A-Fa-f]{32}")
# What other protocols' clients send first.  Reading on would let a web page post commands to a POP3 port.
_OTHER_PROTOCOL = re.compile(rb"\x16\x03|CONNECT |[A-Z]+ (/|\*|https?:)")


# Made once: to make them anew took a third of the time of a pipelined NOOP, and a fifth of a DELE.
_NOTHING_DONE = ok("nothing done")
_DELETED = ok("message marked as deleted")


class State(enum.Flag):
    """RFC 1939's states.  The UPDATE state lasts as long as QUIT does."""

    AUTHORIZATION = enum.auto()
    TRANSACTION = enum.auto()
    ANY = AUTHORIZATION | TRANSACTION


@dataclass(frozen=True, slots=True)
class Command:
    """What the table of commands holds for each keyword."""

    run: Callable[..., Reply]
    fewest: int
    most: int
    longest: int


COMMANDS: dict[State, dict[bytes, Command]] = {State.AUTHORIZATION: {}, State.TRANSACTION: {}}
"""The table of commands: for each state, what its keywords do."""


def command(states: State, longest: int = MAX_LINE) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Declare a command: the keyword is the method's name after ``do_``, the arity its signature.

    The last parameter takes the rest of the line, spaces included.  The line has *longest* octets at the most.
    """

    def declare(method: Callable[..., Reply]) -> Callable[..., Reply]:
        most = method.__code__.co_argcount - 1
        fewest = most - len(method.__defaults__ or ())
        for state, commands in COMMANDS.items():
            if state in states:
                commands[method.__name__.removeprefix("do_").encode()] = Command(method, fewest, most, longest)
        return method

    return declare


class Session:
    """One client's session with one handler."""

    def __init__(
        self,
        handler: Handler,
        *,
        implementation: str,
        expire: str,
        banner: str | None = None,
        certificate: Mapping[str, Any] | None = None,
        allow_cleartext: bool = True,
        scram_decoy_key: bytes | None = None,
        max_bad_commands: int | None = None,
        max_failed_logins: int | None = None,
        max_messages: int | None = None,
    ) -> None:
        self.state = State.AUTHORIZATION
        self.over = False
        """True when the connection is to be closed after the reply that was just returned."""
        self._handler = handler
        self._implementation = implementation
        self._expire = expire
        self._banner = banner
        self._max_bad_commands = max_bad_commands
        self._max_failed_logins = max_failed_logins
        self._max_messages = max_messages
        self._bad_commands = 0  # in a row: some clients try an unknown command before each RETR
        self._failed_logins = 0
        self._username: str | None = None
        self._allow_cleartext = allow_cleartext
        self._allow_passwords = getattr(handler, "allow_passwords", True)
        self._commands = COMMANDS[self.state]
        if self._why_not("PASS"):
            # So PASS's argument is not even decoded.
            self._commands = {
                keyword: found for keyword, found in self._commands.items() if not self._why_not(keyword.decode())
            }
        self._mechanisms = mechanisms(handler, certificate, scram_decoy_key or DECOY_KEY)
        self._offered = [name for name in self._mechanisms if not self._why_not(name)]
        self._exchange: Exchange | None = None
        """The exchange of AUTH that waits for the client's response: the next line is that, whatever it says."""
        self._locked = False
        self._maildrop = Maildrop([], [], handler.get_message_id)
        self._get_top_reader = ability(handler, SupportsTop, "get_top_reader")
        self._enable_utf8 = ability(handler, SupportsUTF8, "enable_utf8")
        self._get_languages = ability(handler, SupportsLanguages, "get_languages")
        self._set_language = ability(handler, SupportsLanguages, "set_language")
        self._utf8 = False
        """True when the client takes UTF-8 in the text of an error: after UTF8 or LANG."""

    # What the connection calls.

    def greet(self) -> Reply:
        """Return the greeting (RFC 1939 section 4)."""
        try:
            return self._greet()
        except BaseException as error:
            self.over = True
            return self._explain(error)

    def respond(self, line: bytes) -> Reply:
        """Run one command line, given without its line end, and return the reply.  Not called once it is `over`."""
        try:
            if self._exchange is not None:
                reply = self._continue_exchange(self._exchange, line)
            else:
                keyword, _, rest = line.partition(b" ")
                found = self._commands.get(keyword.upper())
                if found is None:
                    raise self._explain_unknown(line, keyword)
                if rest:
                    reply = found.run(self, *_arguments(found, line, rest))
                elif found.fewest:
                    raise BadCommandError("missing argument")
                else:
                    reply = found.run(self)
        except BaseException as error:
            return self._explain(error)
        if self._exchange is None:  # a challenge says nothing of the command yet
            self._bad_commands = 0
        return reply

    def verb(self, line: bytes) -> str:
        """Return the keyword of a command line, in capitals; ``""`` for what is no command."""
        keyword = line.partition(b" ")[0].upper()
        return keyword.decode() if any(keyword in commands for commands in COMMANDS.values()) else ""

    @property
    def in_exchange(self) -> bool:
        """True while AUTH waits for the client's response."""
        return self._exchange is not None

    def is_quit(self, line: bytes) -> bool:
        """Tell whether a line begins as QUIT does: before that runs, and deletes, all replies must be on their way."""
        return line[:4].upper() == b"QUIT"

    def close(self) -> None:
        """End the session: release what is still held.  Called once, last.  Nothing is deleted."""
        self.over = True
        self.release()
        tell_end(self._handler)

    def release(self) -> None:
        """Unlock where another failure is being handled, or nobody is left to be told of this one."""
        self._report_failure(self._unlock)

    def report(self, error: BaseException) -> None:
        """Tell the handler of a failure."""
        tell_error(self._handler, error)

    def _explain(self, error: BaseException) -> Reply:
        if isinstance(error, BadCommandError):
            self._count_bad_command()
        else:
            self._bad_commands = 0
        return explain(self._handler, error, utf8=self._utf8)

    def _count_bad_command(self) -> None:
        self._bad_commands += 1
        self._username = None  # a malformed command takes back USER
        if self._max_bad_commands is not None and self._bad_commands >= self._max_bad_commands:
            self.over = True
            self.report(LimitError("too many bad commands"))

    def _greet(self) -> Reply:
        if self._banner is None:
            return ok("POP3 server ready")
        expect_none("set_banner", self._handler.set_banner(self._banner))
        return ok(f"POP3 server ready {self._banner}")

    def _explain_unknown(self, line: bytes, keyword: bytes) -> BadCommandError:
        if keyword.upper() in COMMANDS[State.AUTHORIZATION]:
            why = self._why_not(keyword.upper().decode()) if self.state is State.AUTHORIZATION else None
            return BadCommandError(why or "you are signed in already")
        if keyword.upper() in COMMANDS[State.TRANSACTION]:
            return BadCommandError("sign in first")
        if _OTHER_PROTOCOL.match(line):
            self.over = True
            return BadCommandError("this is a POP3 server")
        return BadCommandError("unknown command")

    def _why_not(self, way: str) -> str | None:
        """Return why a way to sign in, a command or a mechanism, is not taken on this connection; None if it is."""
        if way in _PASSWORD_WAYS and not self._allow_passwords:
            return "passwords are not taken here"
        if way in _CLEARTEXT_WAYS and not self._allow_cleartext:
            return "this needs TLS, from the beginning of the connection"
        return None

    # RFC 1939 sections 4 and 7, RFC 2449 section 5: signing in.

    @command(State.ANY)
    def do_CAPA(self) -> Reply:
        """RFC 2449 section 5: the same list before and after sign-in, but for what may be known of the user then."""
        capabilities = ["TOP", "UIDL"]
        if not self._why_not("USER"):
            capabilities.append("USER")
        capabilities += ["PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"]
        if self._offered:
            capabilities.append(f"SASL {' '.join(self._offered)}")
        if self._enable_utf8 is not None:
            capabilities.append("UTF8 USER")
        if self._get_languages is not None:
            capabilities.append("LANG")
        # What differs from user to user is marked so until one has signed in.
        may_differ = " USER" if self.state is State.AUTHORIZATION else ""
        expire = self._expire if may_differ else self._expire.removesuffix(" USER")
        get_login_delay = ability(self._handler, SupportsLoginDelay, "get_login_delay")
        if get_login_delay is not None:
            (seconds,) = check_numbers([get_login_delay()], MAX_SIZE, "the login delay")
            capabilities.append(f"LOGIN-DELAY {seconds}{may_differ}")
        get_expire = ability(self._handler, SupportsExpire, "get_expire")
        if get_expire is not None:
            if may_differ:
                expire = expire.removesuffix(may_differ) + may_differ
            else:
                days = get_expire()
                expire = "NEVER" if days is None else str(*check_numbers([days], MAX_SIZE, "the days to keep mail"))
        capabilities += [f"EXPIRE {expire}", f"IMPLEMENTATION {self._implementation}"]
        return ok("capability list follows", "".join([f"{line}\r\n" for line in capabilities]).encode())

    @command(State.AUTHORIZATION)
    def do_UTF8(self) -> Reply:
        """RFC 6856 section 2.1."""
        if self._enable_utf8 is None:
            raise BadCommandError("UTF8 is not offered here")
        expect_none("enable_utf8", self._enable_utf8())
        self._utf8 = True
        return ok("UTF-8 enabled")

    @command(State.ANY)
    def do_LANG(self, wanted: str | None = None) -> Reply:
        """RFC 6856 section 3.2.  A language range matches the tags that it begins (RFC 4647 section 3.3.1)."""
        if self._get_languages is None:
            raise BadCommandError("LANG is not offered here")
        languages = _check_languages(self._get_languages())
        if wanted is None:
            return ok("languages follow", "".join([f"{tag} {name}\r\n" for tag, name in languages.items()]).encode())
        tags = list(languages)
        if wanted != "*":
            prefix = wanted.encode().lower() + b"-"  # bytes: str.lower knows letters beyond ASCII
            # The shortest first: that is the tag itself, where it is there.
            tags = sorted([tag for tag in tags if f"{tag}-".encode().lower().startswith(prefix)], key=len)
        if not tags:
            raise ReportableError("no such language here")
        expect_none("set_language", self._set_language(tags[0]))
        self._utf8 = True
        return ok(f"{tags[0]} {languages[tags[0]]}")

    @command(State.AUTHORIZATION)
    def do_USER(self, name: str) -> Reply:
        """RFC 1939 section 7.  Any name is welcome: a refusal would tell which ones exist (section 13)."""
        self._username = name
        return ok("send PASS")

    @command(State.AUTHORIZATION)
    def do_PASS(self, password: str) -> Reply:
        """RFC 1939 section 7: the rest of the line is the password, spaces included."""
        username, self._username = self._username, None
        if username is None:
            raise BadCommandError("USER comes before PASS")
        authenticate = self._handler.authenticate_pass
        return self._sign_in(lambda: expect_none("authenticate_pass", authenticate(username, password)))

    @command(State.AUTHORIZATION)
    def do_APOP(self, name: str, digest: str) -> Reply:
        """RFC 1939 section 7."""
        if self._banner is None:
            raise BadCommandError("APOP is not offered here")
        if not name or not _HEX_DIGEST.fullmatch(digest):
            raise BadCommandError("APOP takes a name and an MD5 digest")
        authenticate = self._handler.authenticate_apop
        return self._sign_in(lambda: expect_none("authenticate_apop", authenticate(name, digest.lower())))

    @command(State.AUTHORIZATION, longest=MAX_AUTH_LINE)
    def do_AUTH(self, mechanism: str | None = None, response: str = "") -> Reply:
        """RFC 5034 section 4.  Without a mechanism it lists them, as some clients ask before CAPA."""
        if mechanism is None:
            return ok("mechanisms follow", "".join([f"{name}\r\n" for name in self._offered]).encode())
        begin = self._mechanisms.get(mechanism.upper()) if mechanism.isascii() else None
        if begin is None:
            raise BadCommandError("unknown mechanism")
        if why := self._why_not(mechanism.upper()):
            raise BadCommandError(why)
        self._username = None
        exchange = begin()
        challenge = next(exchange)
        if response:
            return self._continue_exchange(exchange, response.encode())
        self._exchange = exchange
        return _make_challenge(challenge)

    def _continue_exchange(self, exchange: Exchange, line: bytes) -> Reply:
        self._exchange = None
        response = _read_response(line)

        def answer() -> bytes | None:
            try:
                if isinstance(response, BadCommandError):
                    challenge = exchange.throw(response)
                else:
                    challenge = exchange.send(response)
            except StopIteration:
                return None
            except StoppedError as stopped:
                error = stopped.error
            else:
                self._exchange = exchange
                return challenge
            raise error

        return self._sign_in(answer)

    def _sign_in(self, attempt: Callable[[], bytes | None]) -> Reply:
        """Go on if *attempt* returns None: the user is known.  Octets that it returns are a challenge."""
        try:
            challenge = attempt()
        except BadCommandError:
            raise
        except ReportableError as refusal:
            return self._refuse_login(refusal)
        except BaseException:
            self.over = True
            raise
        return self._open_maildrop() if challenge is None else _make_challenge(challenge)

    def _open_maildrop(self) -> Reply:
        try:
            self._lock()
            self._maildrop = Maildrop.open(self._handler, self._max_messages)
        except ReportableError:
            self.release()
            raise
        except BaseException:
            self.over = True
            self.release()
            raise
        self.state = State.TRANSACTION
        self._commands = COMMANDS[self.state]
        return ok(f"maildrop has {self._maildrop}")

    def _refuse_login(self, refusal: ReportableError) -> Reply:
        if _BACKEND_FAILED.fullmatch(str(refusal.code)):
            return err(refusal.text, refusal.code, utf8=self._utf8)
        delay = FIRST_LOGIN_DELAY * 2 ** min(self._failed_logins, LOGIN_DELAY_DOUBLINGS)
        self._failed_logins += 1
        if self._max_failed_logins is not None and self._failed_logins >= self._max_failed_logins:
            self.over = True
            self.report(LimitError("too many failed logins"))
        return err(refusal.text, refusal.code or "AUTH", utf8=self._utf8)._replace(delay=delay)

    # RFC 1939 sections 5 to 7: the TRANSACTION state.

    @command(State.TRANSACTION)
    def do_STAT(self) -> Reply:
        return ok(f"{self._maildrop.count} {self._maildrop.octets}")

    @command(State.TRANSACTION)
    def do_LIST(self, number: str | None = None) -> Reply:
        maildrop = self._maildrop
        if number is None:
            return ok(str(maildrop), maildrop.list_sizes())
        n = maildrop.find(number)
        return ok(f"{n} {maildrop.sizes[n - 1]}")

    @command(State.TRANSACTION)
    def do_UIDL(self, number: str | None = None) -> Reply:
        maildrop = self._maildrop
        if number is None:
            return ok("unique-id listing follows", maildrop.list_unique_ids())
        n = maildrop.find(number)
        return ok(f"{n} {maildrop.unique_id(n)}")

    @command(State.TRANSACTION)
    def do_RETR(self, number: str) -> Reply:
        n = self._maildrop.find(number)
        size = self._maildrop.sizes[n - 1]
        return self._open(f"{size} octets", n, self._handler.get_message_reader(n), size=size)

    @command(State.TRANSACTION)
    def do_TOP(self, number: str, lines: str) -> Reply:
        n = self._maildrop.find(number)
        if not is_number(lines):
            raise BadCommandError("bad number of lines")
        top = int(lines)
        text = "top of message follows"
        if self._get_top_reader is not None:
            # Where it ends is the handler's choice; only the whole message has a size that was announced.
            return self._open(text, n, self._get_top_reader(n, top), top)
        return self._open(text, n, self._handler.get_message_reader(n), top, self._maildrop.sizes[n - 1])

    @command(State.TRANSACTION)
    def do_DELE(self, number: str) -> Reply:
        self._maildrop.delete(self._maildrop.find(number))
        return _DELETED

    @command(State.TRANSACTION)
    def do_NOOP(self) -> Reply:
        return _NOTHING_DONE

    @command(State.TRANSACTION)
    def do_RSET(self) -> Reply:
        self._maildrop.undelete()
        return ok(f"maildrop has {self._maildrop}")

    @command(State.ANY)
    def do_QUIT(self) -> Reply:
        """RFC 1939 section 6, the UPDATE state: commit, unlock, and only then say so."""
        self.over = True
        numbers = self._maildrop.deleted()
        if numbers:
            try:
                expect_none("delete_messages", self._handler.delete_messages(numbers))
            except BaseException:
                self.release()
                raise
        self._unlock()
        return ok("goodbye")

    # The handler's side.

    def _lock(self) -> None:
        try:
            result: object = self._handler.lock_maildrop()
        except ReportableError as refusal:
            raise ReportableError(refusal.text, code=refusal.code or "IN-USE") from None
        self._locked = True
        expect_none("lock_maildrop", result)

    def _unlock(self) -> None:
        if self._locked:
            self._locked = False
            expect_none("unlock_maildrop", self._handler.unlock_maildrop())

    def _report_failure(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self.report(error)

    # Messages: what fails within one is reported here, and the connection is told what to do.

    def _open(self, text: str, n: int, reader: MessageReader, top: int | None = None, size: int = 0) -> Reply:
        """Start reading message *n*, so that one that cannot be read is refused before ``+OK``."""
        if not (callable(getattr(reader, "read", None)) and callable(getattr(reader, "close", None))):
            close_coroutines(reader)
            raise HandlerError(f"the reader of message {n} cannot be a {type(reader).__name__}")
        try:
            first = _read(reader, n)
            if not first and size:
                raise _short_message(n, size, 0)
        except BaseException:
            self._close_reader(reader)
            raise
        if not first:
            self._close_reader(reader)
            return ok(text, b"")  # as lines, since as a message its final dot would be a piece of its own
        message = self._encode(n, reader, first, top, size)
        next(message)  # a generator that never starts never cleans up
        return ok(text, message=message)

    def _encode(
        self, n: int, reader: MessageReader, first: bytes, top: int | None, size: int
    ) -> Generator[bytes, None, None]:
        """Yield nothing (``b""``) at the start, then the message as it is sent; close the reader in any case."""
        try:
            yield b""
            yield from encode_message(self._chunks(n, reader, first), top, size)
        except ShortMessageError as error:
            answer = self._explain(_short_message(n, size, error.octets))
            raise BrokenMessageError("the message ended early", answer=answer.head()) from None
        except BrokenMessageError:
            raise
        except Exception as error:  # MemoryError, for one: a reader may return more than it was asked for
            self.report(error)
            raise BrokenMessageError("the message could not be encoded") from None
        finally:
            self._close_reader(reader)

    def _chunks(self, n: int, reader: MessageReader, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield chunk
            try:
                chunk = _read(reader, n)
            except BaseException as error:
                self.report(error)
                raise BrokenMessageError("the message's reader failed") from None

    def _close_reader(self, reader: Any) -> None:
        self._report_failure(lambda: expect_done("a reader's close", reader.close()))


def explain(handler: Handler, error: BaseException, *, utf8: bool = False) -> Reply:
    """Turn an error into a reply, and tell the handler of what the client is not told.  The one place for this."""
    if isinstance(error, ReportableError):
        try:
            return err(error.text, error.code, utf8=utf8)
        except BaseException as fault:  # the application may have put anything into its text
            error = fault
    tell_error(handler, error)
    if isinstance(error, HandlerError):
        return err("the mailbox is broken, please tell its administrator", "SYS/PERM")
    return err("internal error, please try again later", "SYS/TEMP")


def _short_message(number: int, size: int, octets: int) -> HandlerError:
    return HandlerError(f"message {number} ended after {octets} octets, its size was said to be {size}")


def _make_challenge(octets: bytes) -> Reply:
    return Reply(b"+ %b\r\n" % b64encode(octets))


def _read_response(line: bytes) -> bytes | BadCommandError:
    """Return the octets of a line that answers a challenge, or what keeps it from being an answer."""
    if line == b"*":
        return BadCommandError("authentication cancelled")
    if line == b"=":
        return b""  # for initial responses, but curl answers a challenge so too
    if len(line) > MAX_AUTH_LINE:
        return BadCommandError("line too long")
    octets = read_base64(line)
    return BadCommandError("a response is base64") if octets is None else octets


def _arguments(found: Command, line: bytes, rest: bytes) -> list[str]:
    if len(line) > found.longest:
        raise BadCommandError("line too long")
    if not found.most:
        raise BadCommandError("this command takes no argument")
    if _NOT_IN_ARGUMENTS.search(rest):
        raise BadCommandError("a command holds neither NUL nor line ends")
    try:
        arguments = rest.decode().split(" ", found.most - 1)
    except UnicodeDecodeError:
        arguments = None
    if arguments is None:
        # Outside of the except block: that exception's text carries the line, and the line may be PASS.
        raise BadCommandError("arguments must be UTF-8")
    if len(arguments) < found.fewest:
        raise BadCommandError("missing argument")
    return arguments


def _read(reader: MessageReader, number: int) -> bytes:
    chunk: object = reader.read(CHUNK_SIZE)
    if not isinstance(chunk, bytes):
        close_coroutines(chunk)
        raise HandlerError(f"the reader of message {number} returned {type(chunk).__name__}, not bytes")
    return chunk


def _check_languages(languages: object) -> dict[str, str]:
    if not isinstance(languages, Mapping):
        close_coroutines(languages)
        raise HandlerError(f"get_languages returned {type(languages).__name__}, not a mapping of tags to names")
    found: dict[str, str] = {}
    for tag, name in languages.items():
        if not (isinstance(tag, str) and _LANGUAGE_TAG.fullmatch(tag)):
            raise HandlerError(f"a language tag has ASCII letters, digits and hyphens: {show(tag)}")
        if not (isinstance(name, str) and name.isprintable() and len(name) <= MAX_LANGUAGE_NAME):
            raise HandlerError(
                f"the name of language {show(tag)} has at most {MAX_LANGUAGE_NAME} printable characters: {show(name)}"
            )
        found[str.__str__(tag)] = str.__str__(name)  # as in _check_id
    return found
