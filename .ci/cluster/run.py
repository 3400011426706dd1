"""Three popart hosts behind HAProxy on one PostgreSQL: one is killed, one is cut off, and nothing is lost.

    python .ci/cluster/run.py [--loopback]

As root it makes network namespaces, so that a host can lose its network; elsewhere it makes do with loopback addresses.
It needs Debian's postgresql and haproxy, and psycopg[binary,pool].  Whatever it starts ends with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from host import LOCK_LOG
from world import DEAD_AFTER, Host, World, wait_for

from popart.testing.check import check_handler

import postgres  # isort: skip  # host has told where it is
from clients import PASSWORD, Client, Mail, Refused, Witness

CLIENTS = 64
MAILDROPS = 16
AGAIN_AFTER_KILL = 3.0
"""Seconds within which the maildrops that a killed host had locked are served again."""

AGAIN_AFTER_CUT = DEAD_AFTER + 4.0
"""The same for a host that fell silent."""


class Failure:
    """A host that dies, what it had locked, and how long until clients were served again."""

    def __init__(self, host: Host, witness: Witness, connection: psycopg.Connection[Any]) -> None:
        self.host = host
        self.witness = witness
        self.connection = connection
        # It is to die in mid-session, with locks held.
        wait_for(lambda: len(self.locks()) >= 3, f"three sessions on {host.name}")

    def locks(self) -> set[int]:
        return {pid for host, pid in self.host.world.lock_holders(self.connection) if host == self.host.name}

    def strike(self, how: str) -> None:
        self.silent = how == "cut_off"
        wait_for(self._sees_maildrops, f"sessions on {self.host.name}")
        self.start = time.monotonic()
        getattr(self.host, how)()

    def _sees_maildrops(self) -> bool:
        self.locked = self.locks()
        last = self.connection.execute(
            "SELECT DISTINCT ON (maildrop) maildrop, event, backend FROM lock_log ORDER BY maildrop, id DESC"
        )
        self.maildrops = {maildrop for maildrop, event, backend in last if event == "lock" and backend in self.locked}
        self.maildrops.discard(Revenant.maildrop)
        return bool(self.maildrops)

    def wait(self, patience: float) -> str:
        """Wait until clients are served again, and say what took how long."""
        times: dict[str, float] = {}
        fenced = ""

        def all_happened() -> bool:
            nonlocal fenced
            now = time.monotonic() - self.start
            if self.host.name not in self.host.world.hosts_up():
                times.setdefault("HAProxy noticed", now)
                if self.silent and not fenced:
                    fenced = self.host.fence(self.connection)
            if not self.locks() & self.locked:
                times.setdefault("locks free", now)
            return len(times) == 2 and all(map(self.served, self.maildrops))

        wait_for(all_happened, "service after a failure", patience + 10)
        self.again = times["their maildrops served again"] = max(map(self.served, self.maildrops))
        assert self.again <= patience, f"served again after {self.again:.2f} s"
        what = ", ".join(f"{what} after {seconds:.2f} s" for what, seconds in times.items())
        return f"{len(self.locked)} sessions died{fenced}; {what} (allowed: {patience:.0f} s)"

    def served(self, maildrop: str) -> float:
        sessions = [s.start for s in self.witness.sessions if s.maildrop == maildrop and s.start > self.start]
        return min(sessions, default=self.start) - self.start


class Revenant:
    """A client that is in touch with the host that will be cut off, past HAProxy, and still is when that is back."""

    maildrop = "revenant"

    def __init__(self, host: Host) -> None:
        self.world = host.world
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\r\n"
        self.client = Client((host.place.address, host.port), self.world.address(1), header)

    def __enter__(self) -> Revenant:
        self.client.__enter__()
        self._sign_in(self.client)
        self.client.ask("DELE 1")
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def _sign_in(self, client: Client) -> None:
        client.ask("USER " + self.maildrop)
        client.ask("PASS " + PASSWORD)

    def haunt(self, reconnect: Callable[[], None]) -> str:
        """Lose the maildrop to another session, then say QUIT.  Return the answer, which is to be no +OK."""
        with Client((self.world.proxy.address, self.world.port), self.world.address(1)) as other:
            self._sign_in(other)
            reconnect()
            try:
                self.client.ask("QUIT")
            except (Refused, ConnectionError) as answer:
                other.ask("QUIT")
                return str(answer)
        raise AssertionError("a host that had lost its lock said that it deleted a message")


def busiest(world: World, connection: psycopg.Connection[Any], hosts: list[Host]) -> Host:
    holders = Counter(host for host, _ in world.lock_holders(connection))
    return max(hosts, key=lambda host: holders[host.name])


def longest_gap(witness: Witness, start: float, end: float) -> float:
    times = [start, *sorted(s.start for s in witness.sessions if start < s.start < end), end]
    return max(after - before for before, after in itertools.pairwise(times))


def check(witness: Witness, mail: Mail, connection: psycopg.Connection[Any], failed: set[str]) -> list[str]:
    """Return each broken promise."""
    broken = list(witness.violations)
    left = {
        str(unique_id): octets for unique_id, octets in connection.execute("SELECT unique_id, octets FROM messages")
    }
    broken += [f"message {i} was altered" for i, octets in left.items() if mail.delivered[i] != octets]

    deleted = Counter(itertools.chain.from_iterable(session.deleted for session in witness.sessions))
    broken += [f"message {i} was deleted twice" for i, times in deleted.items() if times > 1]
    broken += [f"message {i} is there after +OK to its deletion" for i in deleted if i in left]
    # QUIT without an answer: all or none of its messages are gone.
    committed: set[str] = set()
    for session in witness.sessions:
        if session.in_doubt and not session.in_doubt & (left.keys() | deleted.keys()):
            committed |= session.in_doubt
    broken += [f"message {i} is lost" for i in mail.delivered if i not in left.keys() | deleted.keys() | committed]

    of_maildrop = defaultdict(list)
    for session in witness.sessions:
        of_maildrop[session.maildrop].append(session)
    for maildrop, sessions in of_maildrop.items():
        sessions.sort(key=lambda session: session.start)
        for before, after in itertools.pairwise(sessions):
            if after.start <= before.known_held:
                broken.append(f"{maildrop} had the sessions {before} and {after} at once")

    peers = {session.peer for session in witness.sessions}
    log = connection.execute("SELECT maildrop, event, host, backend, peer FROM lock_log ORDER BY id").fetchall()
    last: dict[str, tuple[Any, ...]] = {}
    for maildrop, event, host, backend, peer in log:
        _, last_event, last_host, *last_holder = last.get(maildrop, (maildrop, "unlock", host))
        if event == "lock" and last_event == "lock" and last_host not in failed:
            broken.append(f"{maildrop} was locked by {host} while {last_host} had it")
        if event == "unlock" and (last_event, last_holder) != ("lock", [backend, peer]):
            broken.append(f"{maildrop} was unlocked by {host}, which did not have it")
        last[maildrop] = (maildrop, event, host, backend, peer)
    broken += [f"no handler saw the client {peer}" for peer in peers - {peer for *_, peer in log}]
    return broken


FAILING_DELETION = """
CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$ LANGUAGE plpgsql;
CREATE TRIGGER broken BEFORE DELETE ON messages FOR EACH ROW WHEN (OLD.id % 2 = 0) EXECUTE FUNCTION fail();
"""


def check_alone(world: World) -> None:
    """See that the check for handlers finds nothing in this one."""
    with world.connect() as connection, postgres.open_pool(world.dsn, 4, 15) as pool:
        for name in ("checked", "other"):
            postgres.add_user(connection, name, PASSWORD, cost=2)
            for number in range(5):
                text = f"Subject: {name} {number}\n\n".encode() + b"a line\n" * 10_000 * number
                postgres.deliver(connection, name, text)

        @contextlib.contextmanager
        def break_backend() -> Iterator[None]:
            connection.execute(FAILING_DELETION)
            yield
            connection.execute("DROP TRIGGER broken ON messages")

        report = check_handler(
            lambda peer: postgres.MailHandler(pool, peer),
            user="checked",
            password=PASSWORD,
            other=("other", PASSWORD),
            delete=True,
            break_backend=break_backend,
        )
        connection.execute("DELETE FROM users WHERE name IN ('checked', 'other')")
    assert (report.findings, report.notes) == ([], []), report
    print("the check for handlers finds nothing", flush=True)


def main() -> None:
    began = time.monotonic()
    with World() as world:
        where = "network namespaces" if world.namespaces else "loopback addresses"
        print(f"three hosts, HAProxy and PostgreSQL on {where}, {CLIENTS} clients, {MAILDROPS} maildrops")
        with world.connect() as connection, world.connect() as observer:
            connection.execute(postgres.SCHEMA)
            connection.execute(LOCK_LOG)
            mail = Mail([f"user{number}" for number in range(MAILDROPS)])
            for name in [*mail.maildrops, Revenant.maildrop]:
                postgres.add_user(connection, name, PASSWORD, cost=2)
            mail.fill(connection)
            check_alone(world)
            for host in world.hosts:
                host.start()
            wait_for(lambda: len(world.hosts_up()) == 3, "three healthy hosts")
            try:
                story(world, mail, connection, observer)
            except BaseException:
                for log in sorted(world.scratch.glob("*.log")):
                    print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
                raise
    print(f"the whole test took {time.monotonic() - began:.0f} s")


def story(world: World, mail: Mail, connection: psycopg.Connection[Any], observer: psycopg.Connection[Any]) -> None:
    address = (world.proxy.address, world.port)
    start = time.monotonic()
    with Witness(address, mail, world.client_address, CLIENTS) as witness:

        def go_on(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                mail.fill(connection)
                time.sleep(0.2)

        go_on(5)
        killed = Failure(busiest(world, observer, world.hosts), witness, observer)
        killed.strike("kill")
        print(f"{killed.host.name} killed: {killed.wait(AGAIN_AFTER_KILL)}", flush=True)
        go_on(3)
        others = [host for host in world.hosts if host is not killed.host]
        cut = Failure(busiest(world, observer, others), witness, observer)
        with Revenant(cut.host) as revenant:
            cut.strike("cut_off")
            print(f"{cut.host.name} cut off, {world.how_cut}: {cut.wait(AGAIN_AFTER_CUT)}", flush=True)
            go_on(1)
            answer = revenant.haunt(cut.host.reconnect)
            print(f"{cut.host.name} is back; QUIT to it, of a session that had lost its lock: {answer}", flush=True)
        killed.host.start()
        wait_for(lambda: len(world.hosts_up()) == 3, "three healthy hosts again")
        go_on(5)
        hosts = Counter(host for host, _ in world.lock_holders(observer))
    end = time.monotonic()
    wait_for(lambda: not list(world.lock_holders(observer)), "every lock to be free")
    for host in world.hosts:
        host.process.terminate()
    for host in world.hosts:
        host.process.wait(10)

    broken = check(witness, mail, observer, {killed.host.name, cut.host.name})
    in_doubt = sum(bool(session.in_doubt) for session in witness.sessions)
    print(f"{len(witness.sessions)} sessions in {end - start:.0f} s, {len(mail.delivered)} messages delivered;"
          f" QUITs without an answer: {in_doubt}; the longest time without a sign-in of anybody:"
          f" {longest_gap(witness, start, end):.2f} s; sessions 5 s after all were back: {dict(hosts)}")  # fmt: skip
    for what, count in sorted(witness.counts.items()):
        print(f"    {count:6d} {what}")
    assert not broken, "\n".join(broken[:20])
    assert witness.counts["messages deleted"] > 100, "too few deletions to mean anything"
    print("no message lost, none deleted without QUIT, none altered or cut short, never two sessions in a maildrop")
    refused = sum(count for what, count in witness.counts.items() if what.startswith("refused: -ERR [IN-USE]"))
    print(f"figures: {len(witness.sessions)} sessions, {refused} sign-ins refused with [IN-USE],"
          f" {witness.counts['messages deleted']} messages deleted; served again {killed.again:.1f} s after a host was"
          f" killed and {cut.again:.1f} s after one was cut off")  # fmt: skip


if __name__ == "__main__":
    may_unshare = subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL).returncode == 0
    if may_unshare and os.geteuid() == 0 and not {"--inside", "--loopback"} & set(sys.argv):
        # In a network and a process namespace of its own: nothing can be left behind, and no other network is touched.
        inside = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", [*inside, sys.executable, __file__, "--inside"])
    main()
