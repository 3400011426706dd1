"""From a handler's reader to a reply.  If a message fails, the handler is told, and the connection is told what to
do."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from popart.error_replies import explain
from popart.errors import BrokenMessageError, HandlerError
from popart.handler import Handler, MessageReader
from popart.handler_calls import bad_type, call_close, tell_error
from popart.message_framing import CHUNK_SIZE, ShortMessageError, encode_message, frame_message
from popart.replies import GATHER_SIZE, Reply, ok


def open_message(
    handler: Handler, number: int, reader: MessageReader, text: str, *, top: int | None = None, size: int = 0
) -> Reply:
    """Start reading a message, so that a message that cannot be read is refused before ``+OK``.

    A small message is read to its end: its first octets would wait for more to send anyway.

    With *top* the reply holds at most that many lines of the body.  *size* is the announced size; 0 is not checked.

    :raises BaseException: what the reader raised, or a `HandlerError` if it gave something other than octets, or too
        few.
    """
    source = _Source(handler, number, reader)
    try:
        if not callable(getattr(reader, "read", None)):
            raise HandlerError(f"the reader of message {number} cannot be a {type(reader).__name__}")
        chunks = [source.read()]
        if 0 < len(chunks[0]) < GATHER_SIZE:
            chunks.append(source.read())
        if not chunks[-1]:
            lines = frame_message(chunks[0], top, size)
            source.close()
            return ok(text, lines)
    except ShortMessageError as error:
        source.close()
        raise source.ended_early(error.octets, size) from None
    except BaseException:
        source.close()
        raise
    message = source.encode(chunks, top, size)
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

    def encode(self, first: list[bytes], top: int | None, size: int) -> Generator[bytes, None, None]:
        """Yield nothing (``b""``) at the start, then the message as it is sent; close the reader in any case."""
        try:
            yield b""
            yield from encode_message(self._chunks(first), top, size)
        except ShortMessageError as error:
            answer = explain(self._handler, self.ended_early(error.octets, size))
            raise BrokenMessageError(answer=answer.head()) from None
        except BrokenMessageError:
            raise
        except Exception as error:  # such as MemoryError: a reader may return more than it was asked for
            tell_error(self._handler, error)
            raise BrokenMessageError from None
        finally:
            self.close()

    def _chunks(self, first: list[bytes]) -> Iterator[bytes]:
        yield from first
        while True:
            try:
                chunk = self.read()
            except BaseException as error:
                tell_error(self._handler, error)
                raise BrokenMessageError from None
            if not chunk:
                return
            yield chunk

    def ended_early(self, octets: int, size: int) -> HandlerError:
        return HandlerError(f"message {self._number} ended after {octets} octets, its size was said to be {size}")

    def close(self) -> None:
        call_close(self._reader, "a reader's close", self._handler)
