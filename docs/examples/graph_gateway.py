"""Mailboxes behind an HTTP API, by POP3: here Microsoft Graph, and so Exchange Online.
It needs nothing but popart::

    GRAPH_TENANT=... GRAPH_CLIENT_ID=... GRAPH_CLIENT_SECRET=... \\
    POP3_USERS='alice@example.org:secret' python3 docs/examples/graph_gateway.py

The application has the permission Mail.ReadWrite.  That opens every mailbox of the
tenant, so limit it to these users' mailboxes: "RBAC for Applications in Exchange
Online" says how.  The passwords are this gateway's own: a device that only knows
passwords can then read a mailbox that only takes tokens.  Deleted messages go to the
folder "Deleted Items".
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode

from gateway import (
    TIMEOUT,
    OwnUsersHandler,
    Users,
    make_parser,
    read_users,
    serve,
    short_id,
)

import popart

PATIENCE = 20.0
"""Seconds after which a command waits no longer, if the API wants it to come later.
They begin anew with each page that comes and each message that is moved: otherwise a
large maildrop could never be listed, or emptied."""

BATCH = 20
"""Requests that one $batch takes."""

IMMUTABLE = {"Prefer": 'IdType="ImmutableId"'}
"""Without it, a message that is moved gets another id, and POP3 clients would fetch it
again."""

BUSY = (429, 503, 504)

MOVED = (200, 201, 404)
"""The answers to a move after which the message is no longer where it was.  404 means
that it was not there: an earlier try has moved it, or another program."""

SPOOL = 1 << 20
"""Octets of an answer that are kept in memory; a longer one is kept in a temporary
file."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class API:
    """The API, and the token for it, which all sessions share."""

    def __init__(
        self, address: str, token_address: str, credentials: dict[str, str]
    ) -> None:
        self.address = address
        self._token_address = token_address
        self._credentials = credentials
        self._token, self._renew_at = "", 0.0
        self._opener = urllib.request.build_opener(NoRedirects)

    def _get_token(self, refused: str | None) -> str:
        """Return the token, a new one if it is the one that was refused, or will expire
        soon.

        No lock: no session waits for another one's request, and a token that two have
        asked for does no harm.
        """
        token = self._token
        if token in ("", refused) or time.monotonic() >= self._renew_at:
            request = urllib.request.Request(
                self._token_address, urlencode(self._credentials).encode()
            )
            try:
                with self._opener.open(request, timeout=TIMEOUT) as response:
                    answer = json.load(response)
            except HTTPError as error:
                if error.code in BUSY:
                    raise
                # As an HTTPError it would be taken for an answer of the API.
                with error:
                    raise RuntimeError(f"no token: HTTP {error.code}") from None
            token = answer["access_token"]
            self._renew_at = time.monotonic() + answer["expires_in"] - 60
            self._token = token
        return token

    def ask(
        self, path: str, body: object = None, deadline: float | None = None
    ) -> IO[bytes]:
        """Return the whole answer.  If the API is busy, wait as long as it says; if the
        token is refused, renew it.

        Ask only for what may be done twice: if an answer is lost, it is asked for once
        more.
        """
        deadline = deadline or time.monotonic() + PATIENCE
        token, refused, is_lost = "", None, False
        while True:
            try:
                token = self._get_token(refused)
                return self._ask_once(path, body, token)
            except HTTPError as error:
                with error:
                    if error.code == 401 and refused is None:
                        refused = token
                    elif error.code in BUSY:
                        wait([error.headers["Retry-After"]], deadline)
                    else:
                        raise
            except (HTTPException, OSError):
                if is_lost:
                    raise
                is_lost = True

    def _ask_once(self, path: str, body: object, token: str) -> IO[bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            **IMMUTABLE,
        }
        request = urllib.request.Request(self.address + path, data, headers)
        answer = tempfile.SpooledTemporaryFile(SPOOL)
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                shutil.copyfileobj(response, answer)
                length = response.headers["Content-Length"]
                coding = response.headers.get("Transfer-Encoding", "")
            # Without these two checks, a connection that was lost in the body or in the
            # header is taken for the end.
            if (length is None and coding.lower() != "chunked") or (
                length is not None and int(length) != answer.tell()
            ):
                raise IncompleteRead(b"")
            answer.seek(0)
        except BaseException:
            answer.close()
            raise
        return answer

    def ask_json(
        self, path: str, body: object = None, deadline: float | None = None
    ) -> Any:
        with self.ask(path, body, deadline) as answer:
            return json.load(answer)

    def pages(self, path: str) -> Iterator[Any]:
        """Yield the items of a list that comes in pages."""
        following: str | None = path
        seen = set()
        while following:
            if following in seen:
                raise ValueError("the pages of the list go round in a circle")
            seen.add(following)
            page = self.ask_json(following)
            yield from page["value"]
            address = page.get("@odata.nextLink")
            if address is not None and not address.startswith(f"{self.address}/"):
                raise ValueError(
                    "the next page is on another server, which must not get the token"
                )
            following = address and address.removeprefix(self.address)


def wait(answers: Sequence[str | None], deadline: float) -> None:
    """Wait as long as the API says by Retry-After, but no longer than a client
    would."""
    pause = max(map(seconds, answers))
    if time.monotonic() + pause > deadline:
        raise popart.ReportableError(
            "the mailboxes are busy, please try again later", code="SYS/TEMP"
        )
    time.sleep(pause)


def seconds(retry_after: str | None) -> float:
    """Return how long to wait: Retry-After has seconds, or a date.  It is one second at
    least."""
    if retry_after and retry_after.isdecimal():
        return max(1.0, float(retry_after))
    try:
        date = parsedate_to_datetime(retry_after or "")
    except ValueError:
        return 1.0
    return max(1.0, date.timestamp() - time.time())


class GraphHandler(OwnUsersHandler):
    def __init__(self, api: API, users: Users) -> None:
        super().__init__(users)
        self._api = api
        self._ids: list[str] = []

    @property
    def _mailbox(self) -> str:
        return f"/users/{quote(self.username, safe='')}"

    # Reading.

    def list_messages(self) -> list[tuple[int, str]]:
        query = "$select=id&$orderby=receivedDateTime&$top=500"
        inbox = f"{self._mailbox}/mailFolders/inbox/messages?{query}"
        # If mail comes or goes between two pages, a message may be on both.
        self._ids = list(dict.fromkeys(item["id"] for item in self._api.pages(inbox)))
        # The API knows no size in octets: 1 is what each message certainly has.
        return [(1, short_id(identifier)) for identifier in self._ids]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        """Read the whole message before the client reads anything: no size was
        announced that could prove its end."""
        try:
            identifier = quote(self._ids[number - 1], safe="")
            return self._api.ask(f"{self._mailbox}/messages/{identifier}/$value")
        except HTTPError as error:
            if error.code == 404:
                raise popart.ReportableError(
                    "the message is gone, another program has deleted it"
                ) from None
            raise

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Move all or none: if one cannot be moved, those that were moved come back."""
        doomed = [self._ids[number - 1] for number in numbers]
        asked: list[str] = []
        try:
            self._move(doomed, "inbox", "deleteditems", asked)
        except BaseException:
            try:
                # What was not moved is not in that folder, and that is no error.
                self._move(asked, "deleteditems", "inbox", [])
            except Exception as error:
                self.handle_session_error(error)
            raise

    def _move(
        self, identifiers: Sequence[str], source: str, target: str, asked: list[str]
    ) -> None:
        """Move messages, and tell in *asked* which ones may be in the target now: an
        answer may be lost, and a refusal says nothing about an earlier try."""
        for start in range(0, len(identifiers), BATCH):
            left = list(identifiers[start : start + BATCH])
            asked += left
            deadline = time.monotonic() + PATIENCE
            while left:
                requests = [self._make_move(item, source, target) for item in left]
                answer = self._api.ask_json("/$batch", {"requests": requests}, deadline)
                before = len(left)
                left, pauses = sort_answers(left, answer["responses"])
                if len(left) < before:
                    deadline = time.monotonic() + PATIENCE
                if left:
                    wait(pauses, deadline)

    def _make_move(self, identifier: str, source: str, target: str) -> dict[str, Any]:
        """Make the request that moves a message, if it is in the source.

        This path is in Graph's documents.  Nobody has tested here that Graph looks at
        the folder in it.  If it does not, a message that the user has filed elsewhere
        meanwhile is moved, too.
        """
        folder = f"{self._mailbox}/mailFolders/{source}"
        return {
            "id": identifier,
            "method": "POST",
            "url": f"{folder}/messages/{quote(identifier, safe='')}/move",
            "headers": {"Content-Type": "application/json", **IMMUTABLE},
            "body": {"destinationId": target},
        }


def sort_answers(
    asked: Sequence[str], answers: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str | None]]:
    """Return the messages whose move must be asked for again, and what the API says
    about when.  Raise if it refuses one."""
    status = {answer["id"]: answer["status"] for answer in answers}
    # Also what has no answer.
    left = [item for item in asked if status.get(item) not in MOVED]
    refused = [status[item] for item in left if status.get(item, 503) not in BUSY]
    if refused:
        raise RuntimeError(
            f"{len(refused)} messages could not be moved: HTTP {refused[0]}"
        )
    pauses = [
        answer.get("headers", {}).get("Retry-After")
        for answer in answers
        if answer["id"] in left
    ]
    return left, pauses or [None]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--api", default="https://graph.microsoft.com/v1.0", help="the API's address"
    )
    parser.add_argument(
        "--login",
        default="https://login.microsoftonline.com",
        help="where tokens come from",
    )
    options = parser.parse_args()
    variables = ("GRAPH_TENANT", "GRAPH_CLIENT_ID", "GRAPH_CLIENT_SECRET")
    tenant, client, secret = (os.environ.get(name) for name in variables)
    if not (tenant and client and secret):
        parser.error(f"set the environment variables {', '.join(variables)}")
    credentials = {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_secret": secret,
        "scope": "https://graph.microsoft.com/.default",
    }
    api = API(options.api, f"{options.login}/{tenant}/oauth2/v2.0/token", credentials)
    users = read_users()
    serve(options, lambda peer: GraphHandler(api, users))


if __name__ == "__main__":
    main()
