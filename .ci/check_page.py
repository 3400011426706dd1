"""The page of python3 -m popart.testing --control, in headless Chromium: it shows what there is, as text; its form
delivers; and a page from elsewhere can change nothing."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 30.0

HOSTILE = (
    "Subject: <img src=x onerror=\"document.title='broken'\">\n\n<script>document.title='broken'</script><b>bold</b>\n"
)

ELSEWHERE = """<!DOCTYPE html><meta charset="utf-8"><title>elsewhere</title>
<form method="post" action="{control}/reset" target="frame"><input name="a" value="b"></form>
<form method="post" enctype="text/plain" action="{control}/messages/alice" target="frame">
<input name='{{"message": "' value='"}}'></form>
<iframe name="frame"></iframe>
<script>
for (const form of document.forms) form.submit();
const wait = (promise) => promise.then(() => "answered", () => "refused");
const headers = {{ Authorization: "Bearer {token}", "Content-Type": "application/json" }};
Promise.all([
  wait(fetch("{control}/reset", {{ method: "POST", headers }})),
  wait(fetch("{control}/messages", {{ headers }})),
  wait(fetch("{control}/messages")),
  wait(fetch("{control}/faults", {{ method: "DELETE", mode: "no-cors" }})),
]).then((results) => {{ document.title = results.join(" "); }});
</script>
"""
"""What another page may try, and even one that has learnt the token."""


class Browser:
    """Chromium, told what to do over a pipe (the DevTools protocol: JSON objects with a NUL after each)."""

    def __init__(self, to: int, back: int) -> None:
        self._to = os.fdopen(to, "wb", buffering=0)
        self._back = os.fdopen(back, "rb")
        self._number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        request = {"id": self._number, "method": method, "params": arguments, **session}
        self._to.write(json.dumps(request).encode() + b"\0")
        while True:
            octets = bytearray()
            while (octet := self._back.read(1)) != b"\0":
                assert octet, "the browser has ended"
                octets += octet
            answer = json.loads(octets)
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"{script}: never true.\n{self.run('document.body.innerText')}"
            time.sleep(0.1)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")


@contextmanager
def chromium() -> Iterator[Browser]:
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It wants the descriptors 3 and 4.
        script = f'exec 3<&{to_read} 4>&{back_write}; exec "$@"'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        command = ["bash", "-c", script, "bash", "chromium", *options, f"--user-data-dir={profile}"]
        with subprocess.Popen(command, pass_fds=(to_read, back_write), stderr=subprocess.DEVNULL) as process:
            os.close(to_read)
            os.close(back_write)
            watchdog = threading.Timer(3 * PATIENCE, process.kill)
            watchdog.start()
            try:
                yield Browser(to_write, back_read)
            finally:
                watchdog.cancel()
                process.kill()


@contextmanager
def page_elsewhere(text: str) -> Iterator[str]:
    """Serve a page on another port: another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Control:
    """The program, by its interface."""

    def __init__(self, first: dict[str, Any]) -> None:
        self.first = first

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(self.first["control"].removeprefix("http://"), timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {self.first['token']}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        octets = answer.read()
        connection.close()
        assert answer.status < 400, octets
        return json.loads(octets)


def check(control: Control, browser: Browser) -> None:
    control.ask("POST", "/messages/alice", {"message": HOSTILE, "unique_id": "<b>id</b>"})
    control.ask("POST", "/faults", {"fault": "fail", "command": "XTND <i>x</i>"})
    talk(control.first["port"])

    # What there is stands there, as text.
    browser.go(control.first["page"])
    for shown in ("<b>id</b>", "fail('XTND <i>x</i>')", "C: XYZZY <u>y</u>", control.first["url"]):
        browser.wait_for(f"document.body.innerText.includes({json.dumps(shown)})")
    browser.run("document.querySelector('#mail button').click()")
    browser.wait_for("find('message').textContent.includes('<b>bold</b>')")
    assert browser.run("document.querySelectorAll('b, i, u, img, script').length") == 1, "only the page's own script"
    assert browser.run("document.title") == "popart.testing"
    assert browser.run("find('trouble').textContent") == ""

    # A session is seen as it goes.
    talk(control.first["port"], "XLATER")
    browser.wait_for("document.body.innerText.includes('C: XLATER')")

    # The form delivers, and reset resets.
    browser.run("find('text').value = 'Subject: by the form\\n\\n<p>é</p>\\n'")
    browser.run("document.querySelector('#deliver button').click()")
    browser.wait_for("document.querySelectorAll('#mail tr').length === 2")
    assert len(control.ask("GET", "/messages/alice")) == 2
    browser.run("find('reset').click()")
    browser.wait_for("document.querySelectorAll('#mail tr').length === 0")
    assert (control.ask("GET", "/messages/alice"), control.ask("GET", "/faults")) == ([], [])

    # Without the token it reads, and says why it does not deliver.
    browser.go(control.first["control"] + "/")
    browser.wait_for("document.querySelectorAll('#user option').length === 1")
    browser.run("document.querySelector('#deliver button').click()")
    browser.wait_for("find('trouble').textContent.includes('this needs the header Authorization')")
    assert control.ask("GET", "/messages/alice") == []
    # That stays there while the page goes on.
    control.ask("POST", "/messages/alice", {"message": "x"})
    browser.wait_for("document.querySelectorAll('#mail tr').length === 1")
    assert "this needs the header" in browser.run("find('trouble').textContent")
    control.ask("POST", "/reset")


def check_pages_elsewhere(control: Control, browser: Browser) -> None:
    control.ask("POST", "/messages/alice", {"message": "x"})
    control.ask("POST", "/faults", {"fault": "fail", "command": "RETR"})
    text = ELSEWHERE.format(control=control.first["control"], token=control.first["token"])
    with page_elsewhere(text) as url:
        browser.go(url)
        browser.wait_for("document.title.includes(' ')")
        # A request that the page may send without asking is answered, but it cannot read the answer.
        assert browser.run("document.title") == "refused refused refused refused", browser.run("document.title")
    assert len(control.ask("GET", "/messages/alice")) == 1
    assert control.ask("GET", "/faults") == ["fail('RETR')"]


def talk(port: int, command: str = "XYZZY <u>y</u>") -> None:
    """Hold a session."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock, sock.makefile("rb") as file:
        file.readline()
        sock.sendall(command.encode() + b"\r\nQUIT\r\n")
        file.read()


def main() -> None:
    command = [sys.executable, "-m", "popart.testing", "--control", "--exit-with-parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        control = Control(json.loads(process.stdout.readline()))
        try:
            with chromium() as browser:
                check(control, browser)
                check_pages_elsewhere(control, browser)
        finally:
            process.terminate()
    print("the page shows text, delivers and resets, and no other page does")


if __name__ == "__main__":
    main()
