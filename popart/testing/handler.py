"""The handler of the test kit."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from popart.errors import ReportableError
from popart.handler import BaseHandler, MessageReader, ScramCredentials, SupportsClose
from popart.sasl import apop_digest, scram_credentials
from popart.testing.fault_list import Fault, Run, UnchangedError
from popart.testing.session_record import SessionRecord
from popart.testing.store import MailStore


class StoredMailHandler(BaseHandler, SupportsClose):
    """Serves a user's maildrop, as it was at sign-in.  It has only the abilities that were asked for."""

    def __init__(self, mail: MailStore, record: SessionRecord) -> None:
        self.mail = mail
        self.record = record
        self.allow_sasl_login: bool = "login" in mail._offers
        if "tokens" in mail._offers:
            self.authenticate_token: Callable[[str, str], None] = self._authenticate_token
        if "scram" in mail._offers:
            self.get_scram_credentials: Callable[[str], ScramCredentials] = self._get_scram_credentials
        if "certificates" in mail._offers:
            self.authenticate_certificate: Callable[[str, Mapping[str, Any]], None] = self._authenticate_certificate

    def authenticate_pass(self, username: str, password: str) -> None:
        self._authenticate(username, lambda secret: secret == password)

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        self._authenticate(username, lambda secret: apop_digest(self.banner, secret) == hexdigest)

    def _authenticate_token(self, username: str, token: str) -> None:
        self._authenticate(username, lambda _: self.mail.tokens.get(username) == token)

    def _authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        (name,) = (value for ((key, value),) in certificate["subject"] if key == "commonName")
        self._authenticate(name, lambda _: identity in ("", name))

    def _get_scram_credentials(self, username: str) -> ScramCredentials:
        return _scram_credentials(self._authenticate(username, lambda _: True))

    def _authenticate(self, username: str, fits: Callable[[str], bool]) -> str:
        known = username in self.mail.users
        self.record.username = username if known else self.mail._hide_secrets(f"USER {username}")[5:]
        self.run_or_fail(["sign in"], lambda: None)
        secret = self.mail.users.get(username)
        if secret is None or not fits(secret):
            raise ReportableError("wrong name or password")
        return secret

    def lock_maildrop(self) -> None:
        self._maildrop = self.record.epoch.maildrop(self.record.username)
        self.run_or_fail(["lock"], self._maildrop.lock)
        self._messages = self._maildrop.snapshot()

    def list_messages(self) -> list[tuple[int, str]]:
        return [(len(octets), unique_id) for unique_id, octets in self._messages]

    def get_message_reader(self, number: int) -> MessageReader:
        return io.BytesIO(self._messages[number - 1][1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        unique_ids = [self.get_message_id(number) for number in numbers]
        self.run_or_fail(["commit"], lambda: self._maildrop.delete(unique_ids))

    def unlock_maildrop(self) -> None:
        self._maildrop.unlock()

    def handle_session_error(self, error: BaseException) -> None:
        self.mail._record_error(self.record, error)

    def close(self) -> None:
        self.mail._end_session(self.record)

    def run_or_fail(self, where: Sequence[str], run: Run) -> Any:
        """Return what *run* returns, unless a fault is due at this command or step."""
        fault = self.take_fault(where)
        if fault is None:
            return run()
        try:
            return fault.begin()(where, run)
        except UnchangedError as unchanged:
            self.give_back(fault)
            return unchanged.reply

    def take_fault(self, where: Sequence[str], *, besides: Collection[str] | None = None) -> Fault | None:
        """Return the fault that is due now, and record that it happens.  See `FaultList._take`."""
        fault = self.mail._take(self.record.epoch.faults, where, self.record.username, besides)
        if fault is not None:
            self.record.add_event(str(fault))
        return fault

    def give_back(self, fault: Fault) -> None:
        """Let a fault that has changed nothing happen another time."""
        self.mail._give_back(fault)
        self.record.add_event(f"{fault} has nothing to change here, and waits")


# Making them takes tens of milliseconds.  Because of the cache, users with the same password share a salt.
_scram_credentials = functools.lru_cache(scram_credentials)
