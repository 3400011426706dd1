"""A POP3 server for a directory of mail: an example of popart, and a tutorial.  Read it from top to bottom.

    python3 example_maildir.py                      serves a few messages of its own on port 1100 of this machine
    python3 example_maildir.py --maildir DIR        serves a Maildir, or a plain directory of message files

It lets in any name with any password.  It deletes nothing, and only says what it would delete.  Use it for looking and
testing, and do not offer your own mail to a network with it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import os
import re
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import popart

# 1. The handler: popart asks it for everything.  Each connection has its own, and only the connection's thread uses it.


class MailHandler(popart.BaseHandler, popart.SupportsClose):
    """One client's view of the mail.  `popart.BaseHandler` wants seven methods; `close`, the eighth, is optional."""

    def __init__(self, peer: Any, find_messages: Callable[[], list[Message]]) -> None:
        self.client = join_address(*peer[:2])
        self.find_messages = find_messages
        self.username = ""
        self.messages: list[Message] = []
        self.tell("connected")

    def tell(self, event: str) -> None:
        say(f"{self.client} {event}")

    # Signing in.

    def authenticate_pass(self, username: str, password: str) -> None:
        """Let everybody in.  To say no, raise: ``raise popart.ReportableError("wrong name or password")``."""
        self.username = username

    def lock_maildrop(self) -> None:
        """Note which messages there are.  From now on each number means the same message.

        RFC 1939 wants a lock "as necessary to prevent messages from being modified or removed".  Nobody can modify or
        remove any here, so telnet and a mail program may look at the same time.  A server that deletes takes a lock in
        this method.  If another session has it, the method raises ReportableError("another session has the maildrop").
        """
        self.messages = self.find_messages()
        self.tell(f"signed in as {self.username!a}, messages: {len(self.messages)}")

    # Reading.  Messages are numbered from 1.

    def list_messages(self) -> list[tuple[int, str]]:
        """Return the size and the unique-id of each message.  popart asks once for each session, after the lock."""
        return [(message.size, message.unique_id) for message in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        """Open a message.  Any binary file will do: popart reads it piece by piece, and closes it."""
        message = self.messages[number - 1]
        self.tell(f"reads message {number}, {message.name!a}")
        try:
            return message.open()
        except OSError as error:
            self.tell(f"session error: message {number} cannot be opened: {error!a}")
            # The client may read the text of a ReportableError.  Every other exception stays hidden from it.
            raise popart.ReportableError("the message is gone or cannot be opened", code="SYS/TEMP") from error

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Delete nothing.  The client reads +OK once this has returned.  If you cannot delete, raise."""
        for number in numbers:
            self.tell(f"would delete message {number}, {self.messages[number - 1].name!a}")

    def unlock_maildrop(self) -> None:
        """Release what `lock_maildrop` took: here, nothing."""

    def handle_session_error(self, error: BaseException) -> None:
        self.tell(f"session error: {error!a}")

    def close(self) -> None:
        """Say that this was the last call: `popart.SupportsClose`."""
        self.tell("session over")


class MailServer(popart.Server):
    """popart prints nothing.  This one prints the errors that no handler hears of, such as a failed TLS handshake."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        say(f"{join_address(*client_address[:2])} session error: {getattr(error, '__cause__', None) or error!a}")


# 2. The mail: where the messages come from.


class Message:
    """A message.  You can open it any number of times."""

    def __init__(self, name: str, open_reader: Callable[[], popart.MessageReader]) -> None:
        self.name = name
        # The id must be the same each time this program runs.  A file's name is, but not every name is a legal id.
        legal = re.fullmatch("[!-~]{1,70}", name)
        self.unique_id = name if legal else hashlib.sha256(os.fsencode(name)).hexdigest()
        self.open = open_reader
        # The size is that on the wire, where each line ends with CRLF.  It must not be too large: popart treats a
        # message with fewer octets than announced as cut off.  It is slow to read all mail at each sign-in.  A server
        # with much mail measures a message once, when it arrives.
        with contextlib.closing(open_reader()) as reader:
            self.size = popart.wire_size(reader)


def list_files(directory: Path) -> list[tuple[str, Path]]:
    """Return the files of a Maildir's new/ and cur/, or of a plain directory, with their names, sorted by name.

    A Maildir's file names are unique up to the colon.  The flags after it change when the mail is read.  On Windows no
    name may hold a colon, so programs write ";" or "!" there, such as "name!2,S".
    """
    new, cur = directory / "new", directory / "cur"
    if new.is_dir() and cur.is_dir():
        # Mail programs move messages from new/ to cur/.  In this order none is missed, and one seen twice counts once.
        files = {re.split(":|[;!]2,", path.name)[0]: path for path in [*new.iterdir(), *cur.iterdir()]}
    else:
        files = {path.name: path for path in directory.iterdir()}
    return sorted((name, path) for name, path in files.items() if not path.name.startswith("."))


def read_directory(directory: Path) -> list[Message]:
    """Find the messages in a directory.  Leave out what is not a file, and what cannot be read."""
    messages = []
    for name, path in list_files(directory):
        try:
            if path.is_file():
                messages.append(Message(name, partial(io.FileIO, path)))
        except OSError as error:
            say(f"left out: {error!a}")
    return messages


# 3. The program: options, signals, and what it prints.


class Options(argparse.ArgumentParser):
    """The command line.  An error in it is one line of output."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main() -> None:
    options = Options(description="Serve a directory of mail by POP3, for looking and testing. Nothing is deleted.")
    options.add_argument("--maildir", metavar="DIR", help="a Maildir or a plain directory (default: sample messages)")
    options.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    options.add_argument("--port", default=1100, type=int, help="0 takes any free one (default: %(default)s)")
    options.add_argument("--certfile", metavar="F", help="a certificate: all connections are then TLS")
    options.add_argument("--keyfile", metavar="F", help="the certificate's private key")
    chosen = options.parse_args()
    find_messages, what = make_samples, "sample messages"
    context = None

    if chosen.maildir is not None:
        find_messages, what = partial(read_directory, Path(chosen.maildir)), ascii(chosen.maildir)
        try:
            list_files(Path(chosen.maildir))
        except OSError as error:
            options.error(f"cannot read the directory {what}: {error.strerror}")
    if (chosen.certfile is None) != (chosen.keyfile is None):
        options.error("--certfile and --keyfile are given together or not at all")
    if chosen.certfile is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(chosen.certfile, chosen.keyfile)
        except OSError as error:
            options.error(f"cannot use {chosen.certfile!a} with {chosen.keyfile!a}: {error.strerror or error}")
    try:
        server = MailServer(
            (chosen.host, chosen.port), lambda peer: MailHandler(peer, find_messages), ssl_context=context
        )
    except (OSError, OverflowError, TypeError) as error:  # OverflowError: no such port; TypeError: no host's name
        options.error(f"cannot listen on {chosen.host!a}, port {chosen.port}: {error}")

    with server:  # leaving it ends the sessions that are open
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.server_close())  # a second signal ends the grace
        host, port = map(str, server.server_address[:2])
        if context is None:
            how = f"telnet {host} {port}"
        else:
            how = f"openssl s_client -crlf -quiet -connect {join_address(host, port)}"
        say(f"Serving {what} on {join_address(host, port)}: try {how}, any name and password, Ctrl-C to stop")
        server.serve_forever()


def join_address(host: Any, port: Any) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def say(line: str) -> None:
    """Print a line at once.  Text from outside comes here through `ascii`, so no terminal takes it for a command."""
    try:
        print(line + "\n", end="", flush=True)  # in one piece, as threads print at the same time
    except OSError:
        # Nobody reads the output any more, as after "| head -1".  Go on serving in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# 4. The sample messages.


def make_samples() -> list[Message]:
    """Make a few messages, the same each time.  popart turns their line ends into CRLF and doubles leading dots."""
    utf8 = EmailMessage()
    utf8["From"] = "Zoë Nováková <zoe@example.org>"
    utf8["To"] = "you@example.org"
    utf8["Subject"] = "Grüße in UTF-8: ζ, 日本語, 🐦"
    utf8["Date"] = "Fri, 02 Jan 2026 12:00:00 +0000"
    utf8["Message-ID"] = "<sample-2@example.org>"
    utf8.set_content("Zwölf Boxkämpfer jagen Viktor über den Sylter Deich.\n色は匂へど散りぬるを\n", cte="8bit")

    picture = EmailMessage()
    picture["From"] = "Camera <camera@example.org>"
    picture["To"] = "you@example.org"
    picture["Subject"] = "A small picture"
    picture["Date"] = "Sat, 03 Jan 2026 12:00:00 +0000"
    picture["Message-ID"] = "<sample-3@example.org>"
    picture.set_content("An envelope is attached.\n")
    picture.add_attachment(base64.b64decode(ENVELOPE), maintype="image", subtype="png", filename="envelope.png")
    picture.set_boundary("=-sample-3-=")

    samples = {
        "1-welcome": WELCOME,
        "2-utf-8": utf8.as_bytes(),
        "3-picture": picture.as_bytes(),
        "4-dots": DOTS,
        "5-line-ends": LINE_ENDS,
    }
    return [Message(name, partial(io.BytesIO, octets)) for name, octets in samples.items()]


WELCOME = b"""\
From: popart <popart@example.org>
To: you@example.org
Subject: Welcome
Date: Thu, 01 Jan 2026 12:00:00 +0000
Message-ID: <sample-1@example.org>

You are reading mail by POP3.  What else to try:

LIST         the size of each message
UIDL         the unique-id of each message
TOP 3 5      the header of message 3, and 5 lines of its body
DELE 1       delete this message, once you say QUIT; RSET takes it back
CAPA         what the server can do
QUIT         leave
"""

DOTS = b"""\
From: Dot <dot@example.org>
To: you@example.org
Subject: Lines that start with dots
Date: Sun, 04 Jan 2026 12:00:00 +0000
Message-ID: <sample-4@example.org>

A line with one dot ends a message on the wire, so POP3 doubles a dot at the start of a line.
.
..
...
.profile and .netrc are files.
The client takes the second dot away: the first line of dots has one.
"""

LINE_ENDS = (
    b"From: Eve <eve@example.org>\r\nTo: you@example.org\r\nSubject: Mixed line ends\r\n"
    b"Date: Mon, 05 Jan 2026 12:00:00 +0000\r\nMessage-ID: <sample-5@example.org>\r\n\r\n"
    b"This line ends with CRLF,\r\nthis one with LF,\nand this one not at all."
)

ENVELOPE = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAWAQAAAACJIqPpAAAAS0lEQVR42m3EsRGAIBBFwd+ZpViCoYEj15l0Ih1IJjMiPI/cDVYa"
    "Jng1w6MFbq1waYNTOxwKEGTWuyw2L1UvF69kryavRa+bB/8NHwbkQiKR6STqAAAAAElFTkSuQmCC"
)


if __name__ == "__main__":
    main()
