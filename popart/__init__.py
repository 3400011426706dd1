"""A POP3 server library: popart speaks the protocol, the application brings the mail.

`Server` listens and makes one `Handler` per connection; `popart.handler` is the manual.
"""

from popart.errors import (
    ClientGoneError,
    ClientTimeoutError,
    HandlerError,
    LimitError,
    ReportableError,
    SessionError,
)
from popart.handler import Handler, MessageReader, SupportsClose, SupportsListing, SupportsTop
from popart.server import Server

__all__ = [
    "ClientGoneError",
    "ClientTimeoutError",
    "Handler",
    "HandlerError",
    "LimitError",
    "MessageReader",
    "ReportableError",
    "Server",
    "SessionError",
    "SupportsClose",
    "SupportsListing",
    "SupportsTop",
]

__version__ = "0.1.0"
