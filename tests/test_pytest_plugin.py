"""The fixtures pop3_server and pop3s_server, in test suites of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import popart

pytest_plugins = ["pytester"]

PLUGIN = "pytest_popart"

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run pytest on a test file, with the plugin whether its entry point is installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run_pytest(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        result = pytester.runpytest("-p", PLUGIN, "-p", "no:cacheprovider", "-W", "error", *arguments)
        capfd.readouterr()  # pytester repeats what it ran
        return result

    return run_pytest


def test_fixtures(run: Run) -> None:
    """Each test gets a server of its own, plain or TLS, and its user is alice."""
    pytest.importorskip("trustme")
    result = run(
        """
        import poplib
        import ssl

        import pytest

        def sign_in(client):
            client.user("alice")
            client.pass_("secret")
            assert client.stat()[0] == 1
            client.quit()

        @pytest.mark.parametrize("time", ["first", "second"])
        def test_plain(pop3_server, time):
            assert pop3_server.url.startswith("pop3://")
            pop3_server.deliver("alice", time)
            sign_in(poplib.POP3(pop3_server.host, pop3_server.port, timeout=10))

        @pytest.mark.parametrize("time", ["first", "second"])
        def test_tls(pop3s_server, time):
            assert pop3s_server.url.startswith("pop3s://")
            pop3s_server.deliver("alice", time)
            context = ssl.create_default_context(cafile=pop3s_server.ca_file)
            sign_in(poplib.POP3_SSL(pop3s_server.host, pop3s_server.port, timeout=10, context=context))

        def test_both(pop3_server, pop3s_server):
            pop3_server.deliver("alice", "")
            assert pop3s_server.messages("alice") == []
        """
    )
    result.assert_outcomes(passed=5)


def test_marker(run: Run) -> None:
    """The marker's arguments are MailServer's; the nearest marker wins, and the others hold for the rest."""
    pytest.importorskip("trustme")
    result = run(
        """
        import poplib

        import pytest

        pytestmark = pytest.mark.pop3(users={"bob": "module"}, implementation="module")

        def capabilities(server):
            client = poplib.POP3(server.host, server.port, timeout=10)
            try:
                return client.capa()
            finally:
                client.quit()

        def test_module(pop3_server):
            assert pop3_server.users == {"bob": "module"}
            assert capabilities(pop3_server)["IMPLEMENTATION"] == ["module"]

        @pytest.mark.pop3(implementation="test", expire="7")
        def test_function(pop3_server):
            assert pop3_server.users == {"bob": "module"}
            assert capabilities(pop3_server)["IMPLEMENTATION"] == ["test"]
            assert capabilities(pop3_server)["EXPIRE"] == ["7"]

        @pytest.mark.pop3(users={"carol": "class"})
        class TestClass:
            @pytest.mark.pop3(expire="7")
            def test_method(self, pop3s_server):
                assert pop3s_server.users == {"carol": "class"}
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=3)


def test_marker_with_positional_arguments(run: Run) -> None:
    """A marker's positional arguments are overridden as those with names are, and by them."""
    pytest.importorskip("trustme")
    result = run(
        """
        import pytest

        pytestmark = pytest.mark.pop3({"bob": "module"}, timeout=5)

        def test_module(pop3_server):
            assert pop3_server.users == {"bob": "module"}

        @pytest.mark.pop3({"carol": "class"})
        class TestClass:
            def test_class(self, pop3_server):
                assert pop3_server.users == {"carol": "class"}

            @pytest.mark.pop3({"dave": "test"})
            def test_method(self, pop3_server):
                assert pop3_server.users == {"dave": "test"}

            @pytest.mark.pop3(users={"eve": "test"})
            def test_name(self, pop3s_server):
                assert pop3s_server.users == {"eve": "test"}
                assert pop3s_server.url.startswith("pop3s:")

        @pytest.mark.pop3({"frank": "test"}, "too many")
        def test_too_many(pop3_server): ...

        @pytest.mark.pop3({"frank": "test"}, users={})
        def test_twice(pop3_server): ...
        """
    )
    result.assert_outcomes(passed=4, errors=2)


def test_marker_for_mechanisms(run: Run) -> None:
    """The mechanisms of AUTH are asked for in the marker as well."""
    pytest.importorskip("trustme")
    result = run(
        """
        import poplib
        import ssl

        import pytest

        @pytest.mark.pop3(tokens={"alice": "ya29.x"}, scram=True)
        def test_plain(pop3_server):
            client = poplib.POP3(pop3_server.host, pop3_server.port, timeout=10)
            assert client.capa()["SASL"] == ["SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN"]
            client.quit()

        @pytest.mark.pop3(client_certificates=True)
        def test_tls(pop3s_server):
            context = ssl.create_default_context(cafile=pop3s_server.ca_file)
            context.load_cert_chain(pop3s_server.client_certificate("alice"))
            client = poplib.POP3_SSL(pop3s_server.host, pop3s_server.port, timeout=10, context=context)
            assert client.capa()["SASL"] == ["EXTERNAL", "PLAIN"]
            client.quit()
        """
    )
    result.assert_outcomes(passed=2)


def test_bad_marker(run: Run) -> None:
    """A marker with an argument that MailServer does not take is an error of the test."""
    result = run(
        """
        import pytest

        @pytest.mark.pop3(colour="red")
        def test_it(pop3_server): ...
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*TypeError: *'colour'*"])


def test_failing_test_leaves_nothing(run: Run) -> None:
    """A test that fails in the middle of a session ends its server too; threads are looked for after this test."""
    result = run(
        """
        import socket

        def test_it(pop3_server):
            with socket.create_connection((pop3_server.host, pop3_server.port)):
                assert False
        """
    )
    result.assert_outcomes(failed=1)


def test_help(run: Run) -> None:
    """The marker and the fixtures explain themselves."""
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.pop3(*"])
    run("", "--fixtures").stdout.fnmatch_lines(["pop3_server -- *", "pop3s_server -- *"])


def test_unused(tmp_path: Path) -> None:
    """Suites that do not use the fixtures are not made to import popart."""
    (tmp_path / "test_it.py").write_text("import sys\ndef test_it():\n    assert 'popart' not in sys.modules\n")
    root = Path(popart.__file__).parent.parent
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0, done.stdout.decode()


def test_under_xdist(run: Run) -> None:
    """Tests in several processes have servers that do not meet."""
    pytest.importorskip("xdist")
    result = run(
        """
        import poplib

        import pytest

        @pytest.mark.parametrize("number", range(20))
        def test_it(pop3_server, number):
            pop3_server.deliver("alice", str(number))
            client = poplib.POP3(pop3_server.host, pop3_server.port, timeout=10)
            client.user("alice")
            client.pass_("secret")
            assert client.retr(1)[1] == [str(number).encode()]
            client.quit()
        """,
        "-p",
        "xdist",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=20)
