"""Details of signing in."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

import popart


def test_credentials() -> None:
    """Credentials stay as they were checked, and a log that shows them gives nothing away."""
    credentials = popart.scram_credentials("secret", iterations=4096, salt=b"123456789012")
    with pytest.raises(FrozenInstanceError):
        credentials.iterations = 1  # type: ignore[misc]
    assert "123456789012" not in repr(credentials)
