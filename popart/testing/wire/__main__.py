"""Run the wire suite: ``python3 -m popart.testing.wire HOST:PORT [--pop3-... OPTIONS] [PYTEST'S OPTIONS]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from popart.testing.certificates import needed_by

USAGE = """\
usage: python3 -m popart.testing.wire HOST:PORT [options]

Test a POP3 server against the RFCs.  The options are pytest's and these, which --help explains:
--pop3-user U, --pop3-password P, --pop3-tls, --pop3-delete, --pop3-lacks X,Y
"""


def main(arguments: Sequence[str]) -> int:
    """Run pytest on the suite, whatever project the current directory belongs to, and return its exit status."""
    try:
        with needed_by("the wire suite"):
            import pytest
    except ImportError as error:
        sys.exit(str(error))
    if not arguments:
        sys.exit(USAGE)
    if not arguments[0].startswith("-"):
        arguments = ["--pop3-server", *arguments]
    suite = Path(__file__).parent
    return int(pytest.main([str(suite), "-c", str(suite / "pytest.ini"), *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
