"""Serve message files from memory, to try a mail program by hand: ``python3 -m popart.testing [MESSAGE.eml ...]``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from popart.testing import MailServer


class TalkingServer(MailServer):
    """Prints each command."""

    def record_command(self, command: tuple[str, ...]) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more
            # Escaped, lest a client command the terminal too.
            print(" ".join(command).encode("unicode_escape").decode(), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m popart.testing",
        description="Serve messages from memory to POP3 clients on this machine, and print each command. "
        "Nothing is changed but memory.  Ends with Ctrl-C.",
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="TCP port (default: any free one)")
    parser.add_argument("--tls", action="store_true", help="TLS from the first octet, with a certificate of its own")
    parser.add_argument("messages", nargs="*", metavar="MESSAGE.eml", type=Path, help="a file with one message")
    options = parser.parse_args(arguments)
    # SIGINT too: it is ignored where a script has started this in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as block:
        try:
            server = TalkingServer(tls=options.tls, port=options.port)
            for path in options.messages:
                server.deliver("alice", path.read_bytes())
            block.enter_context(server)
        except (OSError, OverflowError, ImportError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        trust = f", trust {server.ca_file}" if options.tls else ""
        print(f"{server.url} user alice, password secret{trust}", flush=True)
        while True:
            time.sleep(1)  # a signal that comes just before a wait does not end it


if __name__ == "__main__":
    main()
