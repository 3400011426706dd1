"""A throw-away authority, and the certificates that it issues."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Certificates:
    """An authority that issues certificates, and keeps them in a directory.

    :raises ImportError: trustme is not installed.
    """

    def __init__(self, directory: str) -> None:
        with needed_by("tls=True"):
            import trustme
        self._directory = directory
        self._authority = trustme.CA()
        self.ca_file: str = str(Path(directory, "ca.pem"))
        self._authority.cert_pem.write_to_path(self.ca_file)

    def server_context(self, *names: str, ask_clients: bool) -> ssl.SSLContext:
        """Return the context of a server with these names and addresses.  With *ask_clients* it takes clients'
        certificates too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        if ask_clients:
            self._authority.configure_trust(context)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def issue(self, name: str) -> str:
        """Return the path of a new PEM file: a certificate with this common name, and its key."""
        issued = self._authority.issue_cert(common_name=name)
        with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".pem", delete=False) as file:
            file.write(issued.private_key_and_cert_chain_pem.bytes())
        return file.name


@contextlib.contextmanager
def needed_by(option: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{option} needs {error.name}: pip install {error.name}, or popart's extra [testing]"
        ) from None
