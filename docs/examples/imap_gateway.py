"""The INBOX of an IMAP account, by POP3.  It needs nothing but popart::

    python3 docs/examples/imap_gateway.py imap.example.org

Names and passwords are those of the IMAP server, and so are OAuth tokens, by XOAUTH2.
No message is marked as read.
"""

from __future__ import annotations

import imaplib
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from gateway import TIMEOUT, GatewayHandler, PieceReader, make_parser, serve, twice

import popart

BATCH = 500
"""Messages named in one command: servers limit the length of its line, some to 8,000
octets."""

NOT_THE_USERS_FAULT = (
    "[UNAVAILABLE]",
    "[SERVERBUG]",
    "[INUSE]",
    "[LIMIT]",
    "[PRIVACYREQUIRED]",
    "[CANNOT]",
    "[CONTACTADMIN]",
    "AUTHENTICATE COMMAND ERROR: BAD",  # how imaplib reports a BAD
)
"""How a refused sign-in begins that says nothing about the password: mostly with a
response code (RFC 5530, RFC 9051)."""


class IMAPHandler(GatewayHandler, popart.SupportsTokens, popart.SupportsClose):
    def __init__(
        self, connect: Callable[[], imaplib.IMAP4], *, estimated_sizes: bool = False
    ) -> None:
        self._connect = connect
        self._estimated_sizes = estimated_sizes
        self._imap: imaplib.IMAP4 | None = None
        self._sign_in: tuple[str, bytes] | None = None
        self._has_uidplus = False
        self._uid_validity: bytes | None = None
        self._uids: list[int] = []

    # Signing in.  If [IN-USE] or a refusal came after it, the client may sign in again,
    # also as somebody else.

    def authenticate_pass(self, username: str, password: str) -> None:
        self._authenticate(username, "PLAIN", f"\0{username}\0{password}")

    def authenticate_token(self, username: str, token: str) -> None:
        self._authenticate(
            username, "XOAUTH2", f"user={username}\1auth=Bearer {token}\1\1"
        )

    def _authenticate(self, username: str, mechanism: str, response: str) -> None:
        self.close()
        # Many servers take ALICE for alice, and then the lock must be the same.  For
        # another name of the same mailbox, such as alice@example.org, there is another
        # lock: two sessions do no harm here, as UIDs say which messages they mean.
        self.username = username.lower()
        # Kept as long as the session, to sign in again if the connection is lost.
        self._sign_in = mechanism, response.encode()
        self._uid_validity = None
        twice(self._connected, imaplib.IMAP4.abort, OSError)

    def _connected(self) -> imaplib.IMAP4:
        """Return the connection, a new one if there is none, with the INBOX
        selected."""
        if self._imap is None:
            if self._sign_in is None:
                raise refused_later()
            imap = self._connect()
            try:
                self._open_inbox(imap, *self._sign_in)
            except BaseException:
                drop(imap)
                raise
            self._imap = imap
        return self._imap

    def _open_inbox(self, imap: imaplib.IMAP4, mechanism: str, response: bytes) -> None:
        if f"AUTH={mechanism}" not in imap.capabilities:
            raise imaplib.IMAP4.error(f"the server does not take {mechanism}")
        try:
            # Not login(): it quotes no name, and takes only ASCII.  After a refused
            # token comes a second challenge.
            imap.authenticate(
                mechanism, lambda challenge: b"" if challenge else response
            )
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error as refusal:
            if str(refusal).upper().startswith(NOT_THE_USERS_FAULT):
                raise
            # Sent again and again, it might lock the account.
            self._sign_in = None
            if self._uid_validity is not None:
                raise refused_later() from None
            raise popart.ReportableError("wrong name or password") from None
        # Servers announce less to strangers, so the capabilities are asked for after
        # the sign-in.
        self._has_uidplus = (
            b"UIDPLUS" in expect_ok(imap.capability())[0].upper().split()
        )
        expect_ok(imap.select("INBOX"))
        uid_validity: bytes | None = imap.response("UIDVALIDITY")[1][0]
        if uid_validity is None:
            raise imaplib.IMAP4.error("the server has no UIDs that last")
        if self._uid_validity not in (None, uid_validity):
            raise popart.ReportableError(
                "the mailbox was made anew, please sign in again", code="SYS/TEMP"
            )
        self._uid_validity = uid_validity

    def _uid_command(self, *command: str) -> list[Any]:
        return self._command(lambda imap: imap.uid(*command))

    def _command(
        self, command: Callable[[imaplib.IMAP4], tuple[str, list[Any]]]
    ) -> list[Any]:
        """Run a command, and if the connection is lost, run it again on a new one.

        With UIDs that is safe: one never stands for another message, as long as
        UIDVALIDITY is the same.
        """

        def ask() -> list[Any]:
            try:
                return expect_ok(command(self._connected()))
            except (imaplib.IMAP4.abort, OSError):
                if self._imap is not None:
                    drop(self._imap)
                self._imap = None
                raise

        return twice(ask, imaplib.IMAP4.abort, OSError)

    # Reading.

    def list_messages(self) -> list[tuple[int, str]]:
        """List what is not marked as deleted: by this gateway, which may have died
        since, or by another program."""
        assert self._uid_validity is not None
        sizes = {}
        for answer in self._uid_command("FETCH", "1:*", "(UID RFC822.SIZE FLAGS)"):
            uid, size = (
                re.search(rb"\b%b (\d+)" % item, answer or b"")
                for item in (b"UID", b"RFC822.SIZE")
            )
            if uid and size and not is_marked(answer):
                sizes[int(uid[1])] = int(size[1])
        self._uids = sorted(sizes)
        validity = self._uid_validity.decode()
        return [
            (1 if self._estimated_sizes else sizes[uid], f"{validity}.{uid}")
            for uid in self._uids
        ]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        uid = self._uids[number - 1]
        return PieceReader(lambda offset, count: self._fetch(uid, offset, count))

    def _fetch(self, uid: int, offset: int, count: int) -> bytes:
        for answer in self._uid_command(
            "FETCH", str(uid), f"(BODY.PEEK[]<{offset}.{count}>)"
        ):
            if isinstance(answer, tuple) and b"BODY[]" in answer[0]:
                octets: bytes = answer[1]
                return octets
            # What is empty or very short may come without a literal.
            # Where nothing is left comes "": NIL means that the message is gone.
            if isinstance(answer, bytes) and (
                found := re.search(rb'BODY\[\]\S* "(.*)"', answer)
            ):
                return re.sub(rb"\\(.)", rb"\1", found[1])
        raise popart.ReportableError(
            "the message is gone, another program has deleted it"
        )

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Mark them all, which can be taken back, and only then remove them.

        Neither EXPUNGE nor CLOSE: these remove what other programs have marked, too.
        Without UIDPLUS the messages stay marked, and are listed no more.

        Taking the marks back also removes one that another program has set meanwhile.
        """
        uids = [self._uids[number - 1] for number in numbers]
        try:
            self._mark(uids, "+FLAGS.SILENT")
            self._expect_marks(uids)
        except Exception:
            # If the server is gone for good, nobody can take back what it has marked.
            try:
                self._mark(uids, "-FLAGS.SILENT")
            except Exception as error:
                self.handle_session_error(error)
            raise
        # That has decided: whatever fails now, these messages are deleted.
        try:
            if self._has_uidplus:
                for some in batches(uids):
                    self._uid_command("EXPUNGE", some)
        except Exception as error:
            self.handle_session_error(error)

    def _mark(self, uids: Sequence[int], how: str) -> None:
        for some in batches(uids):
            self._uid_command("STORE", some, how, r"(\Deleted)")

    def _expect_marks(self, uids: Sequence[int]) -> None:
        """Raise unless all that are still there are marked: Dovecot answers STORE with
        OK also if it cannot write.  It shows the marks all the same, up to a NOOP."""
        self._command(lambda imap: imap.noop())
        wanted = set(uids)
        for some in batches(uids):
            for answer in self._uid_command("FETCH", some, "(FLAGS)"):
                uid = re.search(rb"\bUID (\d+)", answer or b"")
                if uid and int(uid[1]) in wanted and not is_marked(answer):
                    raise imaplib.IMAP4.error("the server did not mark all messages")

    def close(self) -> None:
        if self._imap is not None:
            with suppress(imaplib.IMAP4.error, OSError):
                self._imap.logout()
            drop(self._imap)
            self._imap = None


def batches(uids: Sequence[int]) -> Iterator[str]:
    """Yield sets of UIDs.  They are never ranges: what other programs have put in
    between would be in them, too."""
    for start in range(0, len(uids), BATCH):
        yield ",".join(map(str, uids[start : start + BATCH]))


def is_marked(answer: bytes) -> bool:
    return re.search(rb"(?i)\\Deleted\b", answer) is not None


def expect_ok(answer: tuple[str, list[Any]]) -> list[Any]:
    """Return what the server said, unless it refused: imaplib raises for BAD, but not
    for NO."""
    if answer[0] != "OK":
        raise imaplib.IMAP4.error(f"the server refused: {answer[1]!r}")
    return answer[1]


def refused_later() -> popart.ReportableError:
    """Return what a client reads whose sign-in was right when its session began."""
    return popart.ReportableError(
        "the mail server refuses the password or token by now, please sign in again",
        code="SYS/TEMP",
    )


def drop(imap: imaplib.IMAP4) -> None:
    with suppress(OSError):
        imap.shutdown()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("imap_host", help="the IMAP server")
    parser.add_argument(
        "--imap-port", type=int, help="its port (993, or 143 with --imap-plain)"
    )
    parser.add_argument(
        "--imap-plain", action="store_true", help="no TLS to the IMAP server"
    )
    parser.add_argument(
        "--estimated-sizes",
        action="store_true",
        help="RFC822.SIZE may be too large, as Exchange's",
    )
    options = parser.parse_args()

    def connect() -> imaplib.IMAP4:
        if options.imap_plain:
            return imaplib.IMAP4(options.imap_host, options.imap_port or 143, TIMEOUT)
        context = ssl.create_default_context()
        return imaplib.IMAP4_SSL(
            options.imap_host,
            options.imap_port or 993,
            ssl_context=context,
            timeout=TIMEOUT,
        )

    serve(
        options,
        lambda peer: IMAPHandler(connect, estimated_sizes=options.estimated_sizes),
    )


if __name__ == "__main__":
    main()
