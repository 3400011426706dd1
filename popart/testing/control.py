"""The HTTP interface of a mail server for tests: who may ask, and how requests are read and answered."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import io
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from popart import system
from popart.testing.operations import Answer, Operations, Request, RequestError, find, to_json
from popart.testing.server import MailServer

MAX_BODY = 64 << 20
"""Octets of a request's body."""

MAX_CONNECTIONS = 100

REQUEST_SECONDS = 10.0
"""Seconds that a request may take to come, and its answer to go."""

LAST_SECONDS = 1.0
"""Seconds that an answer may take once the server stops, and that a refused client may be silent."""

ACCEPT_PAUSE = 0.05
"""Seconds between two checks whether to go on accepting."""

ERROR_PAUSE = 0.1
"""Seconds to wait if no connection can be accepted, such as for want of descriptors."""

_CLOSED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class ControlServer(socketserver.ThreadingTCPServer):
    """Answers requests from its first moment to its `close`."""

    allow_reuse_address: bool = system.REUSE_ADDRESS
    request_queue_size = 100

    def __init__(
        self,
        address: tuple[str, int],
        server: MailServer,
        facts: Mapping[str, Any],
        *,
        token: str | None,
        hosts: Collection[str],
        stop: Callable[[], None],
    ) -> None:
        if ":" in address[0]:
            self.address_family: int = socket.AF_INET6
        self.token: str = token or secrets.token_urlsafe(24)
        self.hosts: set[str] = {"localhost", *[host.lower() for host in hosts]}
        self.operations: Operations = Operations(server, facts, stop)
        self._open: set[Any] = set()
        self._gone = threading.Condition()
        super().__init__(address, ControlRequest)
        bound = self.socket.getsockname()
        self.port: int = bound[1]
        self.is_private: bool = ip_address(bound[0]).is_loopback
        # A daemon: a signal may come between this and the block that closes the server.
        self._thread = threading.Thread(target=self.serve_forever, args=[ACCEPT_PAUSE], daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; requests that are being answered may finish."""
        self.operations.stopping = True
        self.shutdown()
        self._thread.join()
        self._end_all(socket.SHUT_RD)
        with self._gone:
            self._gone.wait_for(lambda: not self._open, LAST_SECONDS)
        self._end_all(socket.SHUT_RDWR)
        self.server_close()

    def _end_all(self, how: int) -> None:
        with self._gone:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(how)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ERROR_PAUSE)  # the connection is still there, and would be tried again at once
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take no more than `MAX_CONNECTIONS` at a time."""
        return len(self._open) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._gone:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._gone:
            self._open.discard(request)
            self._gone.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


class ControlRequest(http.server.BaseHTTPRequestHandler):
    """One request on one connection."""

    server: ControlServer
    protocol_version: str = "HTTP/1.1"
    server_version: str = "popart.testing"
    sys_version: str = ""

    def setup(self) -> None:
        super().setup()
        self._deadline = time.monotonic() + REQUEST_SECONDS
        self.rfile.close()
        self.rfile: io.BufferedIOBase = io.BufferedReader(_TimedReader(self.connection, self._deadline))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        """Percent-encode what some clients leave as it is: the standard library takes each octet for a character, and
        some for spaces."""
        self.raw_requestline: bytes = re.sub(
            rb"[\x80-\xff]", lambda found: b"%%%02X" % found[0][0], self.raw_requestline
        )
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        """Ask for the body only once the rest of the request is right: see `_body`."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library does not take for a request."""
        self.request_version: str = self.protocol_version  # HTTP/0.9, which it may look like, has no headers
        try:
            if code == 501:  # no do_... for this method
                find(self.command, self.path.partition("?")[0])
            error = RequestError(400 if code == 505 else code, message or "this is not a request of HTTP")
        except RequestError as found:
            error = found
        self._refuse(error)

    def do_GET(self) -> None:
        """Answer a request of any method."""
        try:
            answer = self._run()
        except RequestError as error:
            self._refuse(error)
        except Exception as error:  # a fault of the kit's own
            self._refuse(RequestError(500, f"{type(error).__name__}: {error}"))
        else:
            self._send(answer)

    do_POST: Callable[..., None] = do_GET
    do_PUT: Callable[..., None] = do_GET
    do_DELETE: Callable[..., None] = do_GET

    def _refuse(self, error: RequestError) -> None:
        self._send(to_json({"error": str(error)}, status=error.status), allow=error.allow)
        self._read_rest()

    def _run(self) -> Answer:
        self._check_host()
        try:
            parts = urlsplit(self.path)
        except ValueError:
            raise RequestError(400, "this is no URL") from None
        if self.command == "GET" and parts.path == "/":
            return Answer(PAGE, "text/html; charset=utf-8")  # it holds no data, and no token
        if self.command != "GET" or not self.server.is_private:
            self._check_token()
        operation, names = find(self.command, parts.path)
        query = parse_qsl(parts.query, keep_blank_values=True)
        request = Request(query, self.headers.get_content_type(), self._body())
        return self.server.operations.run(request, *map(_resolve, names), operation=operation)

    def _check_host(self) -> None:
        """Refuse web pages, whether they ask by a form or by a name that leads to this address (DNS rebinding)."""
        given = self.headers.get_all("Host") or []
        if len(given) != 1 or not given[0]:
            raise RequestError(403, "send the header Host, once")
        host = given[0].lower()
        name = re.sub(r":\d+\Z", "", host)
        if name not in self.server.hosts and not _is_address(name.removeprefix("[").removesuffix("]")):
            raise RequestError(403, f"the host {host!r} is not known here: allow it with --allow-host")
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{host}":
            raise RequestError(403, "other web pages may not use this interface")

    def _check_token(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.server.token.encode()):
            raise RequestError(401, "this needs the header Authorization: Bearer TOKEN, with the server's token")

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise RequestError(411, "send the body in one piece, with its Content-Length")
        if "Content-Encoding" in self.headers:
            raise RequestError(415, "send the body as it is, without Content-Encoding")
        length, *others = set(self.headers.get_all("Content-Length", ["0"]))
        if others:
            raise RequestError(400, "there are two lengths of the body: send one Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(400, "Content-Length is no number")
        if len(length) > 18 or int(length) > MAX_BODY:
            raise RequestError(413, f"the body has more than {MAX_BODY} octets")
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            raise RequestError(408, "the body does not come, or is shorter than its Content-Length") from None
        if len(body) < int(length):
            raise RequestError(400, "the body is shorter than its Content-Length")
        return body

    def _send(self, answer: Answer, *, allow: str = "") -> None:
        self.send_response(answer.status)
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": PAGE_POLICY if answer.body is PAGE else f"{_CLOSED}; sandbox",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        if answer.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if allow:
            headers["Allow"] = allow
        for name, value in headers.items():
            self.send_header(name, value)
        self.connection.settimeout(REQUEST_SECONDS)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _read_rest(self) -> None:
        """Read the rest of a refused request: unread, it would turn the answer into a reset."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := self._deadline - time.monotonic()) > 0:
                self.connection.settimeout(min(left, LAST_SECONDS))
                if not self.connection.recv(65_536):
                    break


class _TimedReader(io.RawIOBase):
    """What comes from a socket until a deadline: a timeout of its own would begin anew with each octet."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket.recv_into(buffer)


def _resolve(name: str) -> str:
    """Return a part of a path without its percent signs."""
    try:
        return unquote_to_bytes(name).decode()
    except UnicodeDecodeError:
        raise RequestError(400, f"{name!r} in the path is not UTF-8") from None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _policy(page: bytes) -> str:
    """Return a policy that lets a page run its own script and style, and ask this server, and nothing else."""
    policy = f"{_CLOSED}; connect-src 'self'"
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>".encode(), page, re.DOTALL)
        policy += f"; {name}-src 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    return policy


PAGE = resources.files("popart.testing").joinpath("page.html").read_bytes()
PAGE_POLICY = _policy(PAGE)
