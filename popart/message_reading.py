"""From a handler's reader to a reply.  If a message fails, the handler is told, and the connection is told what to
do."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from popart.error_replies import explain
from popart.errors import BrokenMessageError, HandlerError
from popart.handler import Handler, MessageReader
from popart.handler_calls import bad_type, close_coroutines, expect_done, tell_error
from popart.message_framing import CHUNK_SIZE, ShortMessageError, encode_message
from popart.replies import Reply, ok


def open_message(
    handler: Handler, number: int, reader: MessageReader, text: str, *, top: int | None = None, size: int = 0
) -> Reply:
    """Start reading a message, so that a message that cannot be read is refused before ``+OK``.

    With *top* the reply holds at most that many lines of the body.  *size* is the announced size; 0 is not checked.

    :raises BaseException: what the reader raised, or a `HandlerError` if it gave something else than octets, or none.
    """
    if not callable(getattr(reader, "read", None)):
        close_coroutines(reader)
        raise HandlerError(f"the reader of message {number} cannot be a {type(reader).__name__}")
    source = _Source(handler, number, reader)
    try:
        first = source.read()
        if not first and size:
            raise source.ended_early(0, size)
    except BaseException:
        source.close()
        raise
    if not first:
        source.close()
        return ok(text, b"")  # as lines, since as a message its final dot would be a piece of its own
    message = source.encode(first, top, size)
    next(message)  # a generator that never starts never cleans up
    return ok(text, message=message)


class _Source:
    """The reader of one message."""

    def __init__(self, handler: Handler, number: int, reader: MessageReader) -> None:
        self._handler = handler
        self._number = number
        self._reader = reader

    def read(self) -> bytes:
        chunk: object = self._reader.read(CHUNK_SIZE)
        if not isinstance(chunk, bytes):
            raise bad_type(f"the reader of message {self._number}", chunk, "bytes")
        return chunk

    def encode(self, first: bytes, top: int | None, size: int) -> Generator[bytes, None, None]:
        """Yield nothing (``b""``) at the start, then the message as it is sent; close the reader in any case."""
        try:
            yield b""
            yield from encode_message(self._chunks(first), top, size)
        except ShortMessageError as error:
            answer = explain(self._handler, self.ended_early(error.octets, size))
            raise BrokenMessageError("the message ended early", answer=answer.head()) from None
        except BrokenMessageError:
            raise
        except Exception as error:  # MemoryError, for one: a reader may return more than it was asked for
            tell_error(self._handler, error)
            raise BrokenMessageError("the message could not be encoded") from None
        finally:
            self.close()

    def _chunks(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield chunk
            try:
                chunk = self.read()
            except BaseException as error:
                tell_error(self._handler, error)
                raise BrokenMessageError("the message's reader failed") from None

    def ended_early(self, octets: int, size: int) -> HandlerError:
        return HandlerError(f"message {self._number} ended after {octets} octets, its size was said to be {size}")

    def close(self) -> None:
        try:
            close = getattr(self._reader, "close", None)
            if close is not None:
                expect_done("a reader's close", close())
        except BaseException as error:
            tell_error(self._handler, error)
