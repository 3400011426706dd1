"""The tests that docs/howto-control.rst shows for a shell, Node, Ruby and PHP.

They pass, each in less than 40 lines, and each fails if the program under test has a bug.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"

# The command, and a bug that is put into the program under test: a text of its file, and another in its place.
TESTS = {
    "test_fetcher.sh": (["sh"], "test_fetcher.sh", ('"$server/1" &&', '"$server/1" || true;')),
    "test_fetcher.js": (["node", "--test"], "fetcher.js", ("await ask(`DELE ${number}`);", "")),
    "test_fetcher.rb": (["ruby"], "fetcher.rb", ("yield message.pop", "yield message.pop rescue nil")),
    "test_fetcher.php": (["php"], "fetcher.php", ('$ask("DELE $number");', "")),
}

BIN = Path(sys.executable).parent


def run(command: list[str], name: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, name],
        cwd=directory,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def main() -> None:
    for name, (command, changed, (right, wrong)) in TESTS.items():
        assert len((EXAMPLES / name).read_text("utf-8").splitlines()) < 40, name
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            for path in EXAMPLES.glob("*fetcher.*"):
                (directory / path.name).write_bytes(path.read_bytes())
            done = run(command, name, directory)
            assert done.returncode == 0, f"{name}:\n{done.stdout}"
            text = (directory / changed).read_text("utf-8")
            assert text.count(right) == 1, f"{name}: the place for a bug has gone"
            (directory / changed).write_text(text.replace(right, wrong), "utf-8")
            done = run(command, name, directory)
            assert done.returncode != 0, f"{name} does not find the bug:\n{done.stdout}"
    print(f"{len(TESTS)} tests pass, and find a bug each")


if __name__ == "__main__":
    main()
