"""The protocol: states, commands and their replies (RFC 1939, RFC 2449, RFC 5034, RFC 6856).

A `Session` knows no sockets, threads or clocks.  It gets one command line at a time and returns the reply.  All that
can fail in a command fails before the reply exists, so a message is opened and first read here.  Commands never write.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from popart.capabilities import capabilities
from popart.command_lines import FORBIDDEN, MAX_AUTH_LINE, MAX_LINE, TLS_HANDSHAKE, read_text
from popart.error_replies import explain
from popart.errors import BadCommandError, LimitError, ReportableError
from popart.handler import Handler, SupportsLanguages, SupportsTop, SupportsUTF8
from popart.handler_calls import ability, call_close, expect_none, tell_error
from popart.languages import check_languages, choose_language
from popart.maildrop import Maildrop, read_number
from popart.maildrop_lock import MaildropLock
from popart.message_reading import open_message
from popart.replies import Reply, ok
from popart.session_settings import SessionSettings
from popart.sign_in import SignIn

# The first words of other protocols' clients.  Reading on would let a web page post commands to a POP3 port.
_OTHER_PROTOCOL = re.compile(rb"%b|CONNECT |[A-Z]+ (/|\*|https?:)" % TLS_HANDSHAKE)

# Made once: making them anew took a third of the time of a pipelined NOOP, and a fifth of a DELE.
_NOTHING_DONE = ok("nothing done")
_DELETED = ok("message marked as deleted")


class State(enum.Flag):
    """RFC 1939's states.  The UPDATE state lasts as long as QUIT does."""

    AUTHORIZATION = enum.auto()
    TRANSACTION = enum.auto()
    ANY = AUTHORIZATION | TRANSACTION


class Command(NamedTuple):
    """An entry in the table of commands."""

    run: Callable[..., Reply]
    fewest: int
    most: int
    longest: int


COMMANDS: dict[State, dict[bytes, Command]] = {State.AUTHORIZATION: {}, State.TRANSACTION: {}}
"""The table of commands: for each state, the command of each keyword."""


def command(states: State, longest: int = MAX_LINE) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Declare a command.  The keyword is the method's name after ``do_``; the arity is its signature.

    The last parameter takes the rest of the line, spaces included.  The line has at most *longest* octets.
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

    def __init__(self, handler: Handler, settings: SessionSettings) -> None:
        self.state: State = State.AUTHORIZATION
        self.over: bool = False
        """True if the connection must be closed after the last reply."""
        self._handler = handler
        self._settings = settings
        self._bad_commands = 0  # in a row: some clients try an unknown command before each RETR
        self._sign_in = SignIn(handler, settings)
        self._commands = COMMANDS[self.state]
        if self._sign_in.why_not("PASS"):
            # This way PASS's argument is not even decoded.
            self._commands = {
                keyword: found
                for keyword, found in self._commands.items()
                if not self._sign_in.why_not(keyword.decode())
            }
        self._lock = MaildropLock(handler)
        self._maildrop = Maildrop(handler)
        self._get_top_reader = ability(handler, SupportsTop, "get_top_reader")
        self._enable_utf8 = ability(handler, SupportsUTF8, "enable_utf8")
        self._get_languages = ability(handler, SupportsLanguages, "get_languages")
        self._set_language = ability(handler, SupportsLanguages, "set_language")
        self._utf8 = False
        """True if the client takes UTF-8 in the text of an error: after UTF8 or LANG."""

    # What the connection calls.

    def greet(self) -> Reply:
        """Return the greeting (RFC 1939 section 4)."""
        greeting, banner = self._settings.greeting, self._settings.banner
        if banner is None:
            return ok(greeting)
        try:
            expect_none("set_banner", self._handler.set_banner(banner))
        except BaseException as error:
            self.over = True
            return self._explain(error)
        return ok(f"{greeting} {banner}")

    def respond(self, line: bytes) -> Reply:
        """Run one line, a command or a response to AUTH, without its line end.  Not called once `over` is True."""
        try:
            if self._sign_in.exchange is not None:
                reply = self._admit(self._sign_in.take_response, line)
            else:
                keyword, _, rest = line.partition(b" ")
                found = self._commands.get(keyword.upper())
                if found is None:
                    raise self._unknown_command(line, keyword)
                if rest:
                    reply = found.run(self, *_arguments(found, line, rest))
                elif found.fewest:
                    raise BadCommandError("missing argument")
                else:  # through `_arguments` a NOOP would take half as long again
                    reply = found.run(self)
        except BaseException as error:
            return self._explain(error)
        if self._sign_in.exchange is None:  # a challenge says nothing of the command yet
            self._bad_commands = 0
        return reply

    def verb(self, line: bytes) -> str:
        """Return the keyword of a command line, in capitals, or ``""`` if it is not a command."""
        keyword = line.partition(b" ")[0].upper()
        return keyword.decode() if any(keyword in commands for commands in COMMANDS.values()) else ""

    @property
    def in_exchange(self) -> bool:
        """True while AUTH waits for the client's response."""
        return self._sign_in.exchange is not None

    def release(self) -> None:
        """Unlock the maildrop, if it is locked.  Report a failure instead of raising it."""
        try:
            self._lock.release()
        except BaseException as error:
            self.report(error)

    def close(self) -> None:
        """End the session: release what is still held.  Called once, last.  Nothing is deleted."""
        self.over = True
        try:
            self._sign_in.abandon()
        except BaseException as error:
            self.report(error)
        self.release()
        call_close(self._handler, "close", self._handler)

    def report(self, error: BaseException) -> None:
        """Tell the handler of a failure."""
        tell_error(self._handler, error)

    def _explain(self, error: BaseException) -> Reply:
        if isinstance(error, BadCommandError):
            self._bad_commands += 1
            self._sign_in.username = None  # a malformed command cancels USER
            self._end_if_too_many("bad commands", self._bad_commands, self._settings.max_bad_commands)
        else:
            self._bad_commands = 0
        return explain(self._handler, error, utf8=self._utf8)

    def _end_if_too_many(self, what: str, count: int, most: int | None) -> None:
        if most is not None and count >= most:
            self.over = True
            self.report(LimitError(f"too many {what}"))

    def _unknown_command(self, line: bytes, keyword: bytes) -> BadCommandError:
        if keyword.upper() in COMMANDS[State.AUTHORIZATION]:
            why = self._sign_in.why_not(keyword.upper().decode()) if self.state is State.AUTHORIZATION else None
            return BadCommandError(why or "you are signed in already")
        if keyword.upper() in COMMANDS[State.TRANSACTION]:
            return BadCommandError("sign in first")
        if _OTHER_PROTOCOL.match(line):
            self.over = True
            return BadCommandError("this is a POP3 server")
        return BadCommandError("unknown command")

    # RFC 1939 sections 4 and 7, RFC 2449 section 5: signing in.

    @command(State.ANY)
    def do_CAPA(self) -> Reply:
        """RFC 2449 section 5."""
        found = capabilities(
            self._handler,
            self._settings,
            signed_in=self.state is State.TRANSACTION,
            takes_user=not self._sign_in.why_not("USER"),
            mechanisms=self._sign_in.offered(),
            utf8=self._enable_utf8 is not None,
            languages=self._get_languages is not None,
        )
        return ok("capability list follows", _join(found))

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
        """RFC 6856 section 3.2."""
        if self._get_languages is None:
            raise BadCommandError("LANG is not offered here")
        languages = check_languages(self._get_languages())
        if wanted is None:
            return ok("languages follow", _join([f"{tag} {name}" for tag, name in languages.items()]))
        tag = choose_language(wanted, languages)
        if tag is None:
            raise ReportableError("no such language here")
        expect_none("set_language", self._set_language(tag))
        self._utf8 = True
        return ok(f"{tag} {languages[tag]}")

    @command(State.AUTHORIZATION)
    def do_USER(self, name: str) -> Reply:
        """RFC 1939 section 7.  It accepts any name: a refusal would show which names exist (section 13)."""
        self._sign_in.username = name
        return ok("send PASS")

    @command(State.AUTHORIZATION)
    def do_PASS(self, password: str) -> Reply:
        """RFC 1939 section 7: the rest of the line is the password, spaces included."""
        return self._admit(self._sign_in.take_password, password)

    @command(State.AUTHORIZATION)
    def do_APOP(self, name: str, digest: str) -> Reply:
        """RFC 1939 section 7."""
        return self._admit(self._sign_in.take_digest, name, digest)

    @command(State.AUTHORIZATION, longest=MAX_AUTH_LINE)
    def do_AUTH(self, mechanism: str | None = None, response: str = "") -> Reply:
        """RFC 5034 section 4.  Without a mechanism it lists them, because some clients ask before CAPA."""
        if mechanism is None:
            return ok("mechanisms follow", _join(self._sign_in.offered()))
        return self._admit(self._sign_in.begin_exchange, mechanism, response)

    def _admit(self, attempt: Callable[..., Reply | None], *what: object) -> Reply:
        """Sign the client in by one of `SignIn`'s methods.  If the user is known then, open the maildrop."""
        try:
            challenge = attempt(*what)
        except BadCommandError:
            raise
        except ReportableError as refusal:
            before = self._sign_in.failures
            try:
                return self._sign_in.refuse(refusal, utf8=self._utf8)
            finally:  # also if the text of the refusal cannot be written
                if self._sign_in.failures > before:
                    self._end_if_too_many("failed logins", self._sign_in.failures, self._settings.max_failed_logins)
        except BaseException:
            self.over = True
            raise
        return self._open_maildrop() if challenge is None else challenge

    def _open_maildrop(self) -> Reply:
        try:
            self._lock.take()
            self._maildrop.open(self._settings.max_messages)
        except BaseException as error:
            self.over = not isinstance(error, ReportableError)
            self.release()
            raise
        self.state = State.TRANSACTION
        self._commands = COMMANDS[self.state]
        return ok(f"maildrop has {self._maildrop}")

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
        return open_message(self._handler, n, self._handler.get_message_reader(n), f"{size} octets", size=size)

    @command(State.TRANSACTION)
    def do_TOP(self, number: str, lines: str) -> Reply:
        n = self._maildrop.find(number)
        top = read_number(lines, "number of lines")
        text = "top of message follows"
        if self._get_top_reader is not None:
            # The handler may choose where it ends; only the size of the whole message was announced.
            return open_message(self._handler, n, self._get_top_reader(n, top), text, top=top)
        reader = self._handler.get_message_reader(n)
        return open_message(self._handler, n, reader, text, top=top, size=self._maildrop.sizes[n - 1])

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
        """RFC 1939 section 6, the UPDATE state: commit, unlock, and only then answer."""
        self.over = True
        try:
            self._maildrop.commit()
        except BaseException:
            self.release()
            raise
        self._lock.release()
        return ok("goodbye")


def is_quit(line: bytes) -> bool:
    """Return whether a line begins like QUIT.  All replies must leave before QUIT runs, because it deletes."""
    return line[:4].upper() == b"QUIT"


def _join(lines: Iterable[str]) -> bytes:
    return "".join([f"{line}\r\n" for line in lines]).encode()


def _arguments(found: Command, line: bytes, rest: bytes) -> list[str]:
    if len(line) > found.longest:
        raise BadCommandError("line too long")
    if not found.most:
        raise BadCommandError("this command takes no argument")
    text = read_text(rest, "arguments")
    if FORBIDDEN.search(text):
        raise BadCommandError("a command holds neither NUL nor line ends")
    arguments = text.split(" ", found.most - 1)
    if len(arguments) < found.fewest:
        raise BadCommandError("missing argument")
    return arguments
