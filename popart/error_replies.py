"""What the client reads when something was raised, and what the handler is told of it."""

from __future__ import annotations

from popart.errors import HandlerError, ReportableError
from popart.handler import Handler
from popart.handler_calls import tell_error
from popart.replies import Reply, err

INTERNAL = err("internal error, please try again later", "SYS/TEMP")
"""What a client reads when an exception is none of its business."""


def explain(handler: Handler, error: BaseException, *, utf8: bool = False) -> Reply:
    """Turn an error into a reply, and tell the handler of what the client is not told."""
    if isinstance(error, ReportableError):
        try:
            return err(error.text, error.code, utf8=utf8)
        except BaseException as fault:  # the application may have put anything into its text
            error = fault
    tell_error(handler, error)
    if isinstance(error, HandlerError):
        return err("the mailbox is broken, please tell its administrator", "SYS/PERM")
    return INTERNAL
