"""What can be asked of a mail server from outside: each operation by its method and path, with JSON in and out."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from popart.testing.fault_list import FaultList, is_seconds, is_whole
from popart.testing.faults import Faults
from popart.testing.server import MailServer
from popart.testing.store import why_unusable

FAULTS = [
    name
    for name, _ in inspect.getmembers(Faults, inspect.isfunction)
    if not name.startswith("_") and name not in vars(FaultList)
]
"""The methods that ask for a fault."""

JSON = "application/json"
OCTETS = {"message/rfc822", "application/octet-stream"}
"""What a message may be sent as, if it is not a str in JSON."""

MOST_SECONDS = 600.0
"""Seconds that a request may wait for sessions to end."""

WAIT_PAUSE = 0.2
"""Seconds between two checks whether the server is stopping."""


class RequestError(Exception):
    """A request that is wrong: its status, a sentence for whoever made it, and with 405 the methods that are right."""

    def __init__(self, status: int, text: str, *, allow: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.allow = allow


class Answer(NamedTuple):
    """The answer to a request."""

    body: bytes
    content_type: str = JSON
    status: int = 200


class Request(NamedTuple):
    """A request whose sender may make it."""

    query: Sequence[tuple[str, str]]
    content_type: str
    body: bytes

    def arguments(self, *needed: str, may: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members of the body's JSON object: those that are *needed*, and the others or their defaults.

        :raises RequestError: it is not a JSON object, lacks a needed member, or has others.
        """
        found: Any = self.json() if self.body else {}
        missing = [name for name in needed if name not in found]
        if missing:
            raise RequestError(400, f"the JSON object lacks {missing[0]!r}")
        unknown = [name for name in found if name not in needed and name not in may]
        if unknown:
            raise RequestError(400, f"the JSON object has a member {unknown[0]!r}, which means nothing here")
        return {**may, **found}

    def json(self) -> dict[str, Any]:
        if self.content_type != JSON:
            raise RequestError(415, f"send JSON, with the header Content-Type: {JSON}")
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            raise RequestError(400, "the body is not JSON in UTF-8") from None
        if not isinstance(found, dict):
            raise RequestError(400, "the body must be a JSON object")
        return found


class Operations:
    """The operations on one server."""

    def __init__(self, server: MailServer, facts: Mapping[str, Any], stop: Callable[[], None]) -> None:
        self._server = server
        self._facts = facts
        self._stop = stop
        self.stopping: bool = False
        """Set it to end the requests that wait."""

    def run(self, request: Request, *names: str, operation: Operation) -> Answer:
        """Run an operation on what its path names.

        :raises RequestError: the request is wrong.
        """
        for name, value in request.query:
            if name not in QUERIES.get(operation, ()) or dict(request.query)[name] != value:
                raise RequestError(400, f"the query has {name!r}, which means nothing here")
        if operation not in TAKE_BODIES:
            request.arguments(may={})
        try:
            found = operation(self, request, *names)
        except KeyError as error:
            raise RequestError(404, f"there is no {error.args[0]!r} here") from None
        except (TypeError, ValueError) as error:
            raise RequestError(400, str(error)) from None
        return found if isinstance(found, Answer) else to_json(found)

    # Reading.

    def facts(self, request: Request) -> object:
        return self._facts

    def ca(self, request: Request) -> Answer:
        """For clients that cannot read the file, such as from another container."""
        if self._server.ca_file is None:
            raise RequestError(404, "this server has no certificate: start it with --tls")
        return Answer(Path(self._server.ca_file).read_bytes(), "application/x-pem-file")

    def users(self, request: Request) -> object:
        return [*self._server.users]

    def all_messages(self, request: Request) -> object:
        return {name: self.messages(request, name) for name in [*self._server.users]}

    def messages(self, request: Request, name: str) -> object:
        messages = self._server.maildrop(name).snapshot()
        return [{"unique_id": unique_id, "size": len(octets)} for unique_id, octets in messages]

    def message(self, request: Request, name: str, unique_id: str) -> Answer:
        # As text, whatever it is: a browser that is led here must not take it for a page.
        octets = dict(self._server.maildrop(name).snapshot())[unique_id]
        return Answer(octets, "text/plain; charset=utf-8")

    def commands(self, request: Request) -> object:
        return [*self._server.commands]

    def errors(self, request: Request) -> object:
        return [{"type": type(error).__name__, "text": str(error)} for error in [*self._server.errors]]

    def sessions(self, request: Request) -> object:
        """With ``?last=N`` the last ones, without their commands, which may be many: it is for the page."""
        last = dict(request.query).get("last")
        if last is not None and not (last.isascii() and last.isdigit() and len(last) < 10):
            raise RequestError(400, "last must be a number of sessions")
        sessions = [*self._server.sessions]
        return [
            {
                "number": session.number,
                "username": session.username,
                "is_open": session.is_open,
                **({"commands": [*session.commands]} if last is None else {}),
                "transcript": session.transcript(),
            }
            for session in (sessions if last is None else sessions[max(0, len(sessions) - int(last)) :])
        ]

    def transcript(self, request: Request) -> Answer:
        return Answer(self._server.transcript().encode(), "text/plain; charset=utf-8")

    def faults(self, request: Request) -> object:
        return self._server.pending_faults

    # Changing.

    def deliver(self, request: Request, name: str) -> Answer:
        message: bytes | str
        if request.content_type in OCTETS:
            message, unique_id = request.body, dict(request.query).get("unique_id")
            if not message:
                raise RequestError(400, "the body is the message, and it is empty")
        else:
            if request.query:
                raise RequestError(400, "the unique_id of a message in JSON is a member of the JSON object")
            found = request.arguments("message", may={"unique_id": None})
            message, unique_id = found["message"], found["unique_id"]
            if not isinstance(message, str):
                raise RequestError(400, "a message is a JSON string, or the body itself as message/rfc822")
        unique_id = self._server.deliver(name, message, unique_id=unique_id)
        return to_json({"unique_id": unique_id}, status=201)

    def add_user(self, request: Request, name: str) -> object:
        password = request.arguments("password", may={})["password"]
        self._server.users[_secret("name", name)] = _secret("password", password)
        return [*self._server.users]

    def remove_user(self, request: Request, name: str) -> object:
        self._server._remove_user(name)
        return [*self._server.users]

    def add_token(self, request: Request, name: str) -> object:
        token = request.arguments("token", may={})["token"]
        if "tokens" not in self._server._offers:
            raise RequestError(409, "this server takes no tokens: start it with --oauth")
        if name not in self._server.users:
            raise KeyError(name)
        self._server.tokens[name] = _secret("token", token)
        return [*self._server.tokens]

    def remove_token(self, request: Request, name: str) -> object:
        del self._server.tokens[name]
        return [*self._server.tokens]

    def add_fault(self, request: Request) -> Answer:
        """The body names the fault, and has its arguments by their names."""
        arguments = request.json()
        name = arguments.pop("fault", None)
        if name not in FAULTS:
            raise RequestError(400, f"there is no fault {name!r}: it is one of {', '.join(FAULTS)}")
        if arguments.get("seconds") == "inf":
            arguments["seconds"] = float("inf")  # JSON has no number for it
        listed = arguments.pop("capabilities", []) if name == "hide" else []
        if not isinstance(listed, list):
            raise RequestError(400, "capabilities must be a list of strings")
        method = getattr(self._server, name)
        inspect.signature(method).bind(*listed, **arguments)
        method(*listed, **arguments)
        return to_json(self._server.pending_faults, status=201)

    def clear_faults(self, request: Request) -> object:
        self._server.clear_faults()
        return []

    def reset(self, request: Request) -> object:
        self._server.reset()
        return {}

    def wait(self, request: Request) -> object:
        """Wait until sessions have ended."""
        found = request.arguments(may={"timeout": 10.0, "sessions": 1, "since_last_call": False})
        timeout = found.pop("timeout")
        if not (is_seconds(timeout) and timeout <= MOST_SECONDS):
            raise RequestError(400, f"timeout must be 0 to {MOST_SECONDS} seconds")
        if not (is_whole(found["sessions"], 0) and isinstance(found["since_last_call"], bool)):
            raise RequestError(400, "sessions must be a number from 0 on, and since_last_call true or false")
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            try:
                self._server.wait_for_session_end(min(left, WAIT_PAUSE), **found)
                return {}
            except TimeoutError as error:
                if left <= WAIT_PAUSE or self.stopping:
                    raise RequestError(408, f"{error}".partition(", after")[0]) from None

    def stop(self, request: Request) -> object:
        self._stop()
        return {}


Operation = Callable[..., object]

TAKE_BODIES: set[Operation] = {
    Operations.deliver,
    Operations.add_user,
    Operations.add_token,
    Operations.add_fault,
    Operations.wait,
}
"""The operations that read the body; to others it may be an empty object, which some clients always send."""

QUERIES: dict[Operation, set[str]] = {Operations.deliver: {"unique_id"}, Operations.sessions: {"last"}}
"""The operations that take a query, and what may be in it."""

_NAME = "([^/]+)"

ROUTES: list[tuple[str, dict[str, Operation]]] = [
    ("/server", {"GET": Operations.facts}),
    ("/ca", {"GET": Operations.ca}),
    ("/users", {"GET": Operations.users}),
    (f"/users/{_NAME}", {"PUT": Operations.add_user, "DELETE": Operations.remove_user}),
    (f"/tokens/{_NAME}", {"PUT": Operations.add_token, "DELETE": Operations.remove_token}),
    ("/messages", {"GET": Operations.all_messages}),
    (f"/messages/{_NAME}", {"GET": Operations.messages, "POST": Operations.deliver}),
    (f"/messages/{_NAME}/{_NAME}", {"GET": Operations.message}),
    ("/commands", {"GET": Operations.commands}),
    ("/errors", {"GET": Operations.errors}),
    ("/sessions", {"GET": Operations.sessions}),
    ("/transcript", {"GET": Operations.transcript}),
    ("/faults", {"GET": Operations.faults, "POST": Operations.add_fault, "DELETE": Operations.clear_faults}),
    ("/reset", {"POST": Operations.reset}),
    ("/wait", {"POST": Operations.wait}),
    ("/stop", {"POST": Operations.stop}),
]
"""The operations by path and method."""


def find(method: str, path: str) -> tuple[Operation, tuple[str, ...]]:
    """Return the operation of a request, and the names in its path.

    :raises RequestError: there is none.
    """
    for pattern, operations in ROUTES:
        found = re.fullmatch(pattern, path)
        if found is not None:
            if method not in operations:
                text = f"{path} takes {' and '.join(operations)}, not {method}"
                raise RequestError(405, text, allow=", ".join(operations))
            return operations[method], found.groups()
    if path == "/":
        raise RequestError(405, f"/ is the page, and takes GET, not {method}", allow="GET")
    raise RequestError(404, f"there is no {path} here")


def _secret(what: str, value: object) -> str:
    if not (isinstance(value, str) and value):
        raise RequestError(400, f"a {what} must be a string that is not empty")
    if why := why_unusable(value):
        raise RequestError(400, f"a {what} must {why}")
    return value


def to_json(found: object, *, status: int = 200) -> Answer:
    return Answer(json.dumps(found).encode() + b"\n", status=status)
