"""Turn the README into what a package index can show: python3 .ci/pypi_readme.py README.rst

On an index the paths of this checkout lead nowhere.  So a link to a file becomes the file's name, and a picture that is
a file is left out.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"`([^`<]+?)\s+<(?!https://)([^>`]+)>`__?")
PICTURE = re.compile(r"^\.\. image:: (?!https://).*\n(?:   .*\n)*\n", re.MULTILINE)


def name_file(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"``{path}``" if text == path else f"{text} (``{path}``)"


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        path.write_text(LINK.sub(name_file, PICTURE.sub("", path.read_text("utf-8"))), "utf-8")


main()
