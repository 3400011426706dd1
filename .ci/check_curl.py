"""curl fetches every message of a directory of odd real mail from example_maildir.py, plain and over TLS."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import test.test_email
import trustme

ROOT = Path(__file__).parent.parent
MAIL = Path(test.test_email.__file__).parent / "data"


def on_the_wire(message: bytes) -> bytes:
    message = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    return message if message.endswith(b"\r\n") or not message else message + b"\r\n"


def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--user", "alice:secret", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def check(scheme: str, server_options: list[str], curl_options: list[str]) -> None:
    command = [sys.executable, str(ROOT / "example_maildir.py"), "--maildir", str(MAIL), "--port", "0"]
    server = subprocess.Popen([*command, *server_options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        introduction = server.stdout.readline()
        port = re.search(r"\b(?:127\.0\.0\.1|localhost)[: ]+(\d+)", introduction)
        assert port, introduction
        url = f"{scheme}://localhost:{port[1]}/"
        files = sorted(path for path in MAIL.iterdir() if path.is_file() and not path.name.startswith("."))
        listing = curl(*curl_options, url).decode().split()
        sizes = dict(zip(map(int, listing[::2]), map(int, listing[1::2]), strict=True))
        assert len(sizes) == len(files), (len(sizes), len(files))
        for number, path in enumerate(files, 1):
            fetched = curl(*curl_options, f"{url}{number}")
            assert fetched == on_the_wire(path.read_bytes()), path.name
            assert len(fetched) == sizes[number], path.name
        print(f"{scheme}: {len(files)} messages")
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0, server.returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        certfile, keyfile, cafile = (f"{scratch}/{name}.pem" for name in ("cert", "key", "ca"))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(cafile)
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(keyfile)
        certificate.cert_chain_pems[0].write_to_path(certfile)
        check("pop3", [], [])
        check("pop3s", ["--certfile", certfile, "--keyfile", keyfile], ["--cacert", cafile])


main()
