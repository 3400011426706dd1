#!/usr/bin/env python3
"""Compare popart with its peers: same data, same client, every answer checked.  README.rst says how to read it."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chart
import client
import data
import peers
import report
from client import Measurement, Target, WrongAnswerError
from rows import IDLE, ROWS, SIGNED_IN, Row, typical

ROOT = Path(__file__).resolve().parent.parent

DISTURBED = 0.25
"""The share of a core that other processes may use before a run is repeated."""


class Harness:
    """Runs rows and keeps their results."""

    def __init__(self, candidates: list[peers.Peer], options: argparse.Namespace, scratch: Path) -> None:
        self._candidates = candidates
        self._rounds: int = options.rounds
        self._seconds: float = options.seconds
        self._retries: int = options.retries
        self._scratch = scratch
        self._starts = 0
        self._maildrops: dict[str, data.Maildrop] = {}
        self._store = scratch / "store"
        self._context = client.make_context()
        self._pem = scratch / "certificate.pem"
        self.no_tls = peers.make_certificate(self._pem)
        self.results = report.Results()

    def run_rows(self, rows: list[Row]) -> None:
        """Run rows of one maildrop and one handler.  Each server is started once for all of them."""
        maildrop, tls, handler = rows[0].maildrop, rows[0].tls, rows[0].handler
        with contextlib.ExitStack() as stack:
            servers: dict[str, peers.Running] = {}
            for peer in self._able(tls):
                if peer.name == "popart x2" and not any(row.two_processes for row in rows):
                    continue
                try:
                    servers[peer.name] = stack.enter_context(self._running(peer, maildrop, tls, handler))
                except (OSError, peers.CannotStartError) as error:
                    for row in rows:
                        self.results.fail(row.key, row.title, row.unit, peer.name, error)
            for row in rows:
                self._run_row(row, servers)
                self.results.print_row(row.key)

    def _run_row(self, row: Row, servers: dict[str, peers.Running]) -> None:
        ready: dict[str, tuple[peers.Running, Target, list[client.Step]]] = {}
        for name, server in servers.items():
            if name == "popart x2" and not row.two_processes:
                continue
            target = self._target(server, row.tls)
            with self._failing(row.key, row.title, row.unit, name):
                ready[name] = (server, target, self._learn(server, target, row.maildrop, row.exchanges))
        for _ in range(self._rounds):
            for name in list(ready):
                server, target, steps = ready[name]
                failed = True
                with self._failing(row.key, row.title, row.unit, name):
                    found = self._measure(row, server, target, steps)
                    self.results.add(row.key, row.title, row.unit, name, found, row.units, row.operations)
                    failed = False
                if failed:
                    del ready[name]

    def _measure(self, row: Row, server: peers.Running, target: Target, steps: list[client.Step]) -> Measurement:
        """Return the least disturbed of a few runs.  One is enough if nothing else was busy."""
        runs: list[Measurement] = []
        while not runs or (len(runs) <= self._retries and runs[-1].others_cpu > DISTURBED * runs[-1].seconds):
            before, all_before, own_before = server.cpu(), peers.machine_cpu(), time.process_time()
            found = row.measure(target, steps, self._seconds)
            found.server_cpu = server.cpu() - before
            own = time.process_time() - own_before
            found.others_cpu = max(0.0, peers.machine_cpu() - all_before - own - found.server_cpu)
            runs.append(found)
        return min(runs, key=lambda found: found.others_cpu / found.seconds)

    def run_idle(self, tls: bool, count: int, samples: int) -> None:
        """Measure the cost of idle sessions, on a fresh server for each peer."""
        key = "tls-idle" if tls else "idle"
        title = f"{IDLE[key]}, of {count:,}"
        for peer in self._able(tls):
            # An epoll loop in Python, and a second process, would show nothing more.
            if peer.name in ("client ceiling", "popart pinned", "popart one", "popart x2"):
                continue
            number = min(count, peer.most_sessions)
            with self._failing(key, title, "KB", peer.name), self._running(peer, "small", tls) as server:
                target = self._target(server, tls)
                steps = self._learn(server, target, "small", typical)
                self.results.add_idle(key, title, peer.name, self._measure_idle(server, target, steps, number, samples))
        self.results.print_row(key)

    def _measure_idle(
        self, server: peers.Running, target: Target, steps: list[client.Step], count: int, samples: int
    ) -> dict[str, float]:
        empty = client.latency(target, steps, samples)
        memory = server.memory()
        with contextlib.ExitStack() as stack:
            # End the server first: the benchmark does not measure thousands of threads that wake at once.
            opened = client.open_sessions(target, steps[:SIGNED_IN], count)
            for sock in opened:
                stack.callback(sock.close)
            stack.callback(server.stop)
            time.sleep(1)
            grown = server.memory() - memory
            started, cpu = time.perf_counter(), server.cpu()
            time.sleep(min(5.0, 3 * self._seconds))
            share = (server.cpu() - cpu) / (time.perf_counter() - started)
            beside = client.latency(target, steps, samples)
        return {
            "sessions": count,
            "KB": grown / count,
            "idle CPU %": share * 100,
            "ms empty": empty * 1000,
            "ms beside": beside * 1000,
        }

    def _able(self, tls: bool) -> Iterator[peers.Peer]:
        for peer in self._candidates:
            if peer.missing(tls) is None:
                yield peer

    @contextlib.contextmanager
    def _running(
        self, peer: peers.Peer, name: str, tls: bool, handler: tuple[str, ...] = ()
    ) -> Iterator[peers.Running]:
        maildrop = self._maildrop(name)
        if peer.needs_store and not (self._store / name).exists():
            data.write_maildir(maildrop, self._store)
        setting = peers.Setting(maildrop, self._store, self._pem if tls else None, handler)
        self._starts += 1
        server = peers.Running(peer, setting, self._scratch / f"server-{self._starts}")
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()

    def _maildrop(self, name: str) -> data.Maildrop:
        if name not in self._maildrops:
            self._maildrops[name] = data.make_maildrop(name)
        return self._maildrops[name]

    def _target(self, server: peers.Running, tls: bool) -> Target:
        return Target(server.port, self._context if tls else None)

    def _learn(
        self,
        server: peers.Running,
        target: Target,
        name: str,
        commands: Callable[[data.Maildrop], list[data.Exchange]],
    ) -> list[client.Step]:
        maildrop = self._maildrop(name)
        exchanges = data.sign_in(maildrop) + commands(maildrop) + data.QUIT
        if server.peer.own_identifiers:
            listing = client.learn_identifiers(target, data.sign_in(maildrop), maildrop.count)
            exchanges = [(command, listing if command == b"UIDL\r\n" else body) for command, body in exchanges]
        return client.learn(target, exchanges, {b"STAT\r\n": data.stat_line(maildrop)})

    @contextlib.contextmanager
    def _failing(self, key: str, title: str, unit: str, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, WrongAnswerError, peers.CannotStartError) as error:
            self.results.fail(key, title, unit, name, error)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="check answers in a minute; the figures mean little")
    parser.add_argument(
        "--rows", default="*", help="rows to run: names or patterns, with commas between (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and end")
    parser.add_argument("--peers", help="'twisted,dovecot' is the default, 'none' that of --quick")
    parser.add_argument("--twisted-python", default=sys.executable, metavar="PATH", help="a Python that has Twisted")
    parser.add_argument(
        "--command",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more server; {port}, {store}, {user} and {pem} are filled in",
    )
    parser.add_argument("--baseline", metavar="DIR", help="another checkout, whose popart is measured beside this one")
    parser.add_argument("--rounds", type=int, help="runs of each server in each row (default: 3)")
    parser.add_argument("--seconds", type=float, help="length of a run (default: 1)")
    parser.add_argument("--retries", type=int, help="how often a run is repeated if others were busy (default: 1)")
    parser.add_argument("--idle", type=int, help="idle sessions (default: 10,000; a tenth over TLS)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the figures go (default: build/benchmark.json)"
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="where the chart goes (default: build/benchmark.svg)"
    )
    options = parser.parse_args(arguments)
    if options.peers is None:
        options.peers = "none" if options.quick else "twisted,dovecot"
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.2 if options.quick else 1.0)
    if options.retries is None:
        options.retries = 0 if options.quick else 1
    options.idle = options.idle or (200 if options.quick else 10_000)
    if not options.quick:
        options.json = options.json or ROOT / "build" / "benchmark.json"
        options.chart = options.chart or ROOT / "build" / "benchmark.svg"
    return options


def _candidates(options: argparse.Namespace) -> list[peers.Peer]:
    found: list[peers.Peer] = [
        peers.PopartPeer("popart"),
        peers.PopartPeer("popart pinned", "--pin"),
        peers.PopartPeer("popart one", "--processor"),
        peers.PopartPeer("popart x2", "--processor", "--processes", "2"),
    ]
    if options.baseline:
        path = str(Path(options.baseline).resolve())
        found.append(peers.PopartPeer("baseline", "--popart", path))
    found.append(peers.PythonPeer(report.FLOOR, "canned_server.py", "threads"))
    for name in filter(None, options.peers.split(",")):
        if name == "twisted":
            found.append(peers.TwistedPeer(options.twisted_python))
        elif name == "dovecot":
            found.append(peers.DovecotPeer())
        elif name not in ("canned", "none"):
            raise SystemExit(f"no such peer: {name}")
    found += [peers.CommandPeer(option) for option in options.command]
    found.append(peers.CeilingPeer())
    return found


def _most_sessions(wanted: int) -> int:
    """Raise the limit of descriptors, here and for the servers; return how many sessions that allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - 200)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    wanted = options.rows.split(",")
    chosen = [row for row in ROWS if any(fnmatch.fnmatch(row.key, pattern) for pattern in wanted)]
    idle = [key for key in IDLE if any(fnmatch.fnmatch(key, pattern) for pattern in wanted)]
    if options.list:
        for name in [row.key for row in ROWS] + list(IDLE):
            print(name)
        return 0
    if not chosen and not idle:
        raise SystemExit("no such row; --list shows them")
    sessions = _most_sessions(options.idle)
    started = time.monotonic()
    candidates = _candidates(options)
    print(peers.describe_machine())
    with tempfile.TemporaryDirectory(prefix="popart-benchmark-") as directory:
        scratch = Path(directory)
        scratch.chmod(0o755)
        harness = Harness(candidates, options, scratch)
        for peer in candidates:
            for tls in (False, True):
                if reason := peer.missing(tls):
                    print(f"skipped: {peer.name}{' over TLS' if tls else ''}: {reason}")
                    if not tls:
                        break
        if harness.no_tls:
            print(f"skipped: all rows over TLS: {harness.no_tls}")
            chosen = [row for row in chosen if not row.tls]
            idle = [key for key in idle if key != "tls-idle"]
        groups: dict[tuple[str, bool, tuple[str, ...]], list[Row]] = {}
        for row in chosen:
            groups.setdefault((row.maildrop, row.tls, row.handler), []).append(row)
        for rows in groups.values():
            harness.run_rows(rows)
        for key in idle:
            tls = key == "tls-idle"
            harness.run_idle(tls, max(1, sessions // 10) if tls else sessions, 20 if options.quick else 200)
    results = harness.results
    results.print_summary()
    print(f"\n{time.monotonic() - started:.0f} seconds, {options.rounds} rounds of {options.seconds} seconds")
    _write(options.json, json.dumps(results.to_json(peers.describe_machine()), indent=1) + "\n")
    _write(options.chart, chart.draw(results))
    return 1 if results.print_failures() else 0


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
