"""CRAM-MD5 (RFC 2195), as a mechanism of the application's own."""

import hmac
import secrets
from collections.abc import Callable, Generator, Mapping

import popart


class CramMD5SignIn(popart.SupportsMechanisms):
    """The client proves that it knows the password.  You have to store the passwords in
    readable form."""

    passwords = {"alice": "secret"}

    def get_mechanisms(
        self,
    ) -> Mapping[str, Callable[[], Generator[bytes, bytes, str]]]:
        return {"CRAM-MD5": self.cram_md5}

    def cram_md5(self) -> Generator[bytes, bytes, str]:
        challenge = b"<%d@mail.example.org>" % secrets.randbits(128)
        response = yield challenge
        name, _, digest = response.rpartition(b" ")
        self.username = name.decode(errors="replace")
        password = self.passwords.get(self.username, "")
        right = hmac.digest(password.encode(), challenge, "md5").hex()
        if not (hmac.compare_digest(right.encode(), digest) and password):
            raise popart.ReportableError("wrong name or password")
        return self.username
