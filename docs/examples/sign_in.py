"""Ways to sign in that show popart no password.

Derive your handler from those that you want.
"""

import hmac
from collections.abc import Mapping
from typing import Any

import popart


class ApopSignIn:
    """APOP, for a server made with ``apop=True``.

    You have to store the secrets in readable form.
    """

    secrets = {"alice": "secret"}

    def set_banner(self, banner: str) -> None:
        self.banner = banner

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        secret = self.secrets.get(username, "")
        right = hmac.compare_digest(popart.apop_digest(self.banner, secret), hexdigest)
        if not (right and secret):
            raise popart.ReportableError("wrong name or password")


class TokenSignIn(popart.SupportsTokens):
    """OAuth 2.0.

    Ask the issuer of the tokens, or check their signature with a library such as PyJWT.
    """

    def authenticate_token(self, username: str, token: str) -> None:
        claims = self.look_up(token)
        if (
            claims is None
            or claims["email"] != username
            or "pop" not in claims["scope"].split()
        ):
            raise popart.ReportableError("this token is not valid here")

    def look_up(self, token: str) -> dict[str, str] | None:
        """Return what the issuer says about a token (RFC 7662).

        Here there is only one token.
        """
        is_known = hmac.compare_digest(token, "ya29.token")
        return {"email": "alice", "scope": "pop"} if is_known else None


class ScramSignIn(popart.SupportsScram):
    """SCRAM-SHA-256: the client never sends its password.

    A thief of the stored data cannot sign in with it.
    """

    # Make them once for each user, when the password is set:
    # popart.scram_credentials(password).
    credentials = {"alice": popart.scram_credentials("secret")}

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        if username not in self.credentials:
            raise popart.ReportableError("wrong name or password")
        return self.credentials[username]


class CertificateSignIn(popart.SupportsCertificates):
    """A TLS client certificate.  Its common name is the user's name."""

    def authenticate_certificate(
        self, identity: str, certificate: Mapping[str, Any]
    ) -> None:
        names = [
            value
            for part in certificate["subject"]
            for key, value in part
            if key == "commonName"
        ]
        if len(names) != 1 or identity not in ("", names[0]):
            raise popart.ReportableError("this certificate is not for that user")
        self.username = names[0]
