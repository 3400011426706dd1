"""A fake of Microsoft Graph's mail, as far as the gateway uses it, for one mailbox.  It fails on demand."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Message:
    octets: bytes
    folder: str = "inbox"


@dataclass
class FakeGraph:
    """The mailbox, and what is to go wrong."""

    page_size: int = 3
    messages: dict[str, Message] = field(default_factory=dict)
    """By their ids, which are long and hold what a path must quote."""

    token: str = ""
    """The one token that is valid now."""

    tokens: int = 0
    """How many there have been."""

    asked: list[str] = field(default_factory=list)
    """The requests, as method and path.  Those within a batch are ``batch`` and path."""

    faults: list[tuple[str, Answer]] = field(default_factory=list)
    """Answers for the first requests that match: each is given once."""

    between_pages: Callable[[], None] = lambda: None
    next_host: str | None = None
    is_circular: bool = False
    """Whether the last page names the first as the next."""

    lost_answers: int = 0
    """How many answers are still to be missing from batches, with nothing done."""

    done_all_the_same: list[int | None] = field(default_factory=list)
    """What the next requests of batches are answered, although they are done; None is no answer."""

    cut_bodies: int = 0
    """How many messages are still to break off half-way."""

    guard: threading.RLock = field(default_factory=threading.RLock)

    def deliver(self, octets: bytes) -> None:
        with self.guard:
            self.messages[f"AAMk/{len(self.messages):04d}+{'x' * 120}=="] = Message(octets)

    def in_folder(self, folder: str) -> list[bytes]:
        with self.guard:
            return [message.octets for message in self.messages.values() if message.folder == folder]

    def fail(self, what: str, status: int, times: int = 1, **headers: str) -> None:
        """Give this answer to the next requests whose method and path match a regular expression."""
        answer = (status, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"error": {}}')
        self.faults += [(what, answer)] * times

    def expire(self) -> None:
        """Make the token invalid, before its time."""
        with self.guard:
            self.token = "another"

    def make_server(self, port: int) -> ThreadingHTTPServer:
        return _Server(self, port)

    # Answers.

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        with self.guard:
            self.asked.append(f"{method} {target}")
            if fault := self._fault(method, target):
                return fault
            if target == "/tenant/oauth2/v2.0/token":
                return self._give_token(body)
            if headers["Authorization"] != f"Bearer {self.token}":
                return 401, {}, b'{"error": {"code": "InvalidAuthenticationToken"}}'
            assert headers["Prefer"] == 'IdType="ImmutableId"'
            if (method, target) == ("POST", "/v1.0/$batch"):
                return 200, {}, self._answer_batch(json.loads(body))
            assert method == "GET"
            if found := re.fullmatch(r"/v1\.0/users/alice/messages/([^/]+)/\$value", target):
                message = self.messages.get(unquote(found[1]))
                return (404, {}, b"{}") if message is None else (200, {"Content-Type": "text/plain"}, message.octets)
            parts = urlsplit(target)
            assert parts.path == "/v1.0/users/alice/mailFolders/inbox/messages"
            return self._list(parts.path, parse_qs(parts.query), headers["Host"])

    def _fault(self, method: str, target: str) -> Answer | None:
        for fault in self.faults:
            if re.match(fault[0], f"{method} {target}"):
                self.faults.remove(fault)
                return fault[1]
        return None

    def _give_token(self, body: bytes) -> Answer:
        form = parse_qs(body.decode())
        assert form["grant_type"] == ["client_credentials"] and form["client_secret"] == ["client-secret"]
        self.tokens += 1
        self.token = f"token-{self.tokens}"
        return 200, {}, json.dumps({"access_token": self.token, "expires_in": 3600}).encode()

    def _list(self, path: str, query: dict[str, list[str]], host: str) -> Answer:
        assert query["$select"] == ["id"]
        start = int(query.get("$skip", ["0"])[0])
        if start:
            self.between_pages()
        ids = [identifier for identifier, message in self.messages.items() if message.folder == "inbox"]
        page: dict[str, Any] = {"value": [{"id": identifier} for identifier in ids[start : start + self.page_size]]}
        following = start + self.page_size
        if following >= len(ids) and self.is_circular:
            following = 0
        if following < len(ids):
            page["@odata.nextLink"] = f"http://{self.next_host or host}{path}?$select=id&$skip={following}"
        return 200, {}, json.dumps(page).encode()

    def _answer_batch(self, batch: dict[str, Any]) -> bytes:
        assert 1 <= len(batch["requests"]) <= 20
        responses = []
        for request in reversed(batch["requests"]):  # in any order
            self.asked.append(f"batch {request['url']}")
            if self.lost_answers:
                self.lost_answers -= 1
                continue
            status: int | None
            if self.done_all_the_same:
                self._move(request)
                status, headers = self.done_all_the_same.pop(), {}
            else:
                status, headers, _ = self._fault("batch", request["url"]) or (self._move(request), {}, b"")
            if status is None:
                continue
            responses.append({"id": request["id"], "status": status, "headers": headers, "body": {}})
        return json.dumps({"responses": responses}).encode()

    def _move(self, request: dict[str, Any]) -> int:
        found = re.fullmatch(r"/users/alice/mailFolders/(\w+)/messages/([^/]+)/move", request["url"])
        assert found and request["method"] == "POST" and request["headers"]["Prefer"] == 'IdType="ImmutableId"'
        message = self.messages.get(unquote(found[2]))
        if message is None or message.folder != found[1]:
            return 404
        message.folder = request["body"]["destinationId"]
        return 201


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, fake: FakeGraph, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fake = fake

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        fake = self.server.fake
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, headers, octets = fake.answer(self.command, self.path, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        if self.path.endswith("/$value") and fake.cut_bodies:
            fake.cut_bodies -= 1
            octets = octets[: len(octets) // 2]
        self.wfile.write(octets)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...
