"""Run the wire suite against servers that others wrote, to show that the tests are right.

    python3 -m tests.wire.other_servers [dovecot] [twisted]
    python3 -m tests.wire.other_servers --table         prints what they lack and fail, as RST

Each server is started on a scratch configuration and a free port of this machine, plain and over TLS.  This file lists
the optional features that a server lacks, and the tests that it fails, with the reasons.  Anything else is an error.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from popart.testing.wire.messages import write_maildir

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 20.0


@dataclass(frozen=True)
class Scratch:
    """The means to start a server."""

    directory: Path
    port: int
    pem: Path | None
    """A certificate and its key, for TLS."""

    @property
    def maildir(self) -> Path:
        return self.directory / "mail"


class OtherServer:
    """A server, and what it lacks and fails."""

    name: str
    schemes: tuple[str, ...]
    lacks: dict[str, str]
    """Optional features that it lacks, and what it does instead."""

    fails: dict[str, str]
    """Tests that it fails, in at least one of their cases, and how."""

    def command(self, scratch: Scratch) -> list[str]:
        """Return the command line of a server that stays in the foreground."""
        raise NotImplementedError


class Dovecot(OtherServer):
    """Debian's dovecot-pop3d."""

    name = "Dovecot 2.3, 2.4"
    schemes = ("pop3", "pop3s")
    lacks = {
        "lock": "sessions share the maildrop; with pop3_lock_session the second is refused after ten seconds",
        "strict": "it takes more than one space, a NUL at the end of the line, and USER without a name",
    }
    fails = {
        "test_answers_are_printable": "-ERR repeats what was sent, with its 8-bit and control octets",
        "test_sizes_are_octets_on_the_wire": "the size does not count the line end added to a message without one",
        "test_the_same_list_in_both_states": "SASL and USER are no longer announced after the sign-in",
    }

    def command(self, scratch: Scratch) -> list[str]:
        dovecot = shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if dovecot is None:
            raise SystemExit("dovecot is not installed")
        version = subprocess.run([dovecot, "--version"], capture_output=True, text=True, check=True).stdout
        if not version.startswith(("2.3.", "2.4.")):
            raise SystemExit(f"the configurations are for Dovecot 2.3 and 2.4, and this is {version.strip()}")
        root = os.geteuid() == 0
        # Dovecot does not touch mail as root.
        owner = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(owner.pw_gid).gr_name
        if root:
            for path in (scratch.maildir, *scratch.maildir.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        passwords = scratch.directory / "passwords"
        passwords.write_text("alice:{PLAIN}secret\n")
        directory = scratch.directory
        (used, unused) = ("pop3s", "pop3") if scratch.pem else ("pop3", "pop3s")
        # Without root all processes run as this one user.
        users = f"""\
default_internal_user = {owner.pw_name}
default_internal_group = {group}
default_login_user = {owner.pw_name}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""
        is_old = version.startswith("2.3.")
        names = ("ssl_cert = <", "ssl_key = <") if is_old else ("ssl_server_cert_file = ", "ssl_server_key_file = ")
        tls = "\n".join(["ssl = yes", *(f"{name}{scratch.pem}" for name in names)]) if scratch.pem else "ssl = no"
        if is_old:
            versioned = f"""\
disable_plaintext_auth = no
passdb {{
  driver = passwd-file
  args = {passwords}
}}
userdb {{
  driver = static
  args = uid={owner.pw_uid} gid={owner.pw_gid} home={directory}
}}
mail_location = maildir:{scratch.maildir}
"""
        else:
            versioned = f"""\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
auth_allow_cleartext = yes
passdb passwd-file {{
  passwd_file_path = {passwords}
}}
userdb static {{
  fields {{
    uid = {owner.pw_uid}
    gid = {owner.pw_gid}
    home = {directory}
  }}
}}
mail_driver = maildir
mail_path = {scratch.maildir}
"""
        configuration = directory / "dovecot.conf"
        configuration.write_text(
            f"""\
{versioned}
{tls}
protocols = pop3
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
{"" if root else users}
auth_mechanisms = plain apop scram-sha-256
auth_failure_delay = 0
first_valid_uid = 1
mail_max_userip_connections = 0
# It would answer later and later, because the tests fail to sign in from one address again and again.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service pop3-login {{
  chroot = {"login" if root else ""}
  inet_listener {used} {{
    port = {scratch.port}
  }}
  inet_listener {unused} {{
    port = 0
  }}
}}
"""
        )
        return [dovecot, "-F", "-c", str(configuration)]


class Twisted(OtherServer):
    """Twisted's POP3, with the messages in memory.  Over TLS it would say the same."""

    name = "Twisted 26"
    schemes = ("pop3",)
    lacks = {
        "bare-lf": "waits for a CRLF",
        "lock": "leaves locking to the application",
        "strict": "RETR +1 is RETR 1; one argument too many, or DELE x, ends the connection without an answer",
    }
    fails = {
        "test_a_marked_message_is_out_of_reach": "STAT still counts it, and LIST still lists it, with the size 0",
        "test_a_session_in_one_write": "commands sent together with one that fails are never answered",
        "test_an_empty_listing": "LIST still lists the marked messages, with the size 0",
        "test_answers_are_printable": "-ERR repeats what was sent, or the connection ends without an answer",
        "test_apop": "the right digest is refused, because a str is compared with bytes",
        "test_arguments_that_are_missing": "the connection ends without an answer",
        "test_many_commands_in_one_write": "commands sent together with one that fails are never answered",
        "test_nobody_signs_in_twice": "USER is accepted again",
        "test_numbers_of_no_message": "DELE 0 marks the last message",
        "test_numbers_that_are_missing": "the connection ends without an answer",
        "test_octets_survive": "if a line begins with a dot where a chunk of 16 KiB begins, the dot is not stuffed",
        "test_one_line_of_a_listing": "UIDL 1 is answered without the number",
        "test_sizes_are_octets_on_the_wire": "a message loses the dots that are not stuffed",
        "test_top": "the last line of a message is left out if it has no line end",
        "test_top_wants_a_number_of_lines": "the connection ends without an answer to TOP 1",
        "test_unique_ids_of_marked_messages": "UIDL still lists them",
        "test_unknown_commands": "the connection ends without an answer to 8-bit octets",
    }

    def command(self, scratch: Scratch) -> list[str]:
        return [sys.executable, "-m", "tests.wire.twisted_server", str(scratch.port)]


SERVERS: dict[str, OtherServer] = {"dovecot": Dovecot(), "twisted": Twisted()}


@contextlib.contextmanager
def started(server: OtherServer, tls: bool) -> Iterator[int]:
    """Start a server with a new maildrop; yield its port."""
    with tempfile.TemporaryDirectory(prefix="wire-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # a server may give up root, and must still reach this directory
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        scratch = Scratch(directory, port, _make_certificate(directory / "pem") if tls else None)
        write_maildir(scratch.maildir)
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(
                server.command(scratch), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
            )
        try:
            _wait_for(port, process)
            yield port
        except BaseException:
            for log in ("output", "log"):
                with contextlib.suppress(OSError):
                    print((directory / log).read_text(errors="replace"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _make_certificate(path: Path) -> Path:
    import trustme

    trustme.CA().issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    path.chmod(0o644)
    return path


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the server did not start")


def ask(server: OtherServer, scheme: str) -> list[str]:
    """Run the suite, print a line about it, and return all differences from what is listed here."""
    with started(server, scheme == "pop3s") as port, tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "popart.testing.wire", f"127.0.0.1:{port}", "-q"]
        command += ["--pop3-delete", f"--pop3-lacks={','.join(server.lacks)}"]
        command += [f"--junitxml={report}", *["--pop3-tls"] * (scheme == "pop3s")]
        # With CI set, pytest shows all differences between octets, and may need minutes to find them.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        output = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True).stdout
        tests = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = {
        test.attrib["name"].partition("[")[0]
        for test in tests
        if test.find("failure") is not None or test.find("error") is not None
    }
    print(f"{server.name}, {scheme}: {output.splitlines()[-1]}", flush=True)
    wrong = [f"{name} fails" for name in sorted(failed - server.fails.keys())]
    wrong += [f"{name} does not fail" for name in sorted(server.fails.keys() - failed)]
    if wrong:
        print(output)
    return wrong


def make_table() -> str:
    """Return what the servers lack and fail, as a table of RST."""
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - Server",
        "     - Test or feature",
        "     - What it does",
    ]
    for server in SERVERS.values():
        for name, text in [
            *server.fails.items(),
            *((f"--pop3-lacks {name}", text) for name, text in server.lacks.items()),
        ]:
            lines += [f"   * - {server.name}", f"     - ``{name}``", f"     - {text}"]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["--table"]:
        print(make_table())
        return
    wrong = [
        f"{server.name}, {scheme}: {text}"
        for name in sys.argv[1:] or SERVERS
        for server in [SERVERS[name]]
        for scheme in server.schemes
        for text in ask(server, scheme)
    ]
    if wrong:
        sys.exit("\n".join(["This differs from what is listed here:", *wrong]))


if __name__ == "__main__":
    main()
