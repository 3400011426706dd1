"""A check for handlers: what a handler does wrong, before mail is lost::

    from popart.testing.check import check_handler

    def test_handler():
        report = check_handler(lambda peer: MyHandler(), user="alice", password="secret")
        assert report.findings == []

In a shell it is ``python3 -m popart.testing.check module:factory --user alice --password secret``.
"""

from popart.testing.check.checker import check_handler
from popart.testing.check.report import CheckError, Report

__all__ = ["CheckError", "Report", "check_handler"]
