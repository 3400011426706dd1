"""A POP3 server library: popart speaks the protocol, the application brings the mail.

`Server` listens and makes one `Handler` per connection; `popart.handler` is the manual.
"""

from popart.errors import ClientGoneError, ClientTimeoutError, HandlerError, LimitError, ReportableError, SessionError
from popart.handler import (
    BaseHandler,
    Handler,
    MessageReader,
    ScramCredentials,
    SupportsAuthorization,
    SupportsCertificates,
    SupportsClose,
    SupportsExpire,
    SupportsLanguages,
    SupportsListing,
    SupportsLoginDelay,
    SupportsMechanisms,
    SupportsMonitoring,
    SupportsScram,
    SupportsTokens,
    SupportsTop,
    SupportsUTF8,
)
from popart.message_framing import wire_form, wire_size
from popart.sasl import apop_digest, scram_credentials
from popart.server import Server

__all__ = [
    "BaseHandler",
    "ClientGoneError",
    "ClientTimeoutError",
    "Handler",
    "HandlerError",
    "LimitError",
    "MessageReader",
    "ReportableError",
    "ScramCredentials",
    "Server",
    "SessionError",
    "SupportsAuthorization",
    "SupportsCertificates",
    "SupportsClose",
    "SupportsExpire",
    "SupportsLanguages",
    "SupportsListing",
    "SupportsLoginDelay",
    "SupportsMechanisms",
    "SupportsMonitoring",
    "SupportsScram",
    "SupportsTokens",
    "SupportsTop",
    "SupportsUTF8",
    "apop_digest",
    "scram_credentials",
    "wire_form",
    "wire_size",
]

__version__ = "0.2.0"
