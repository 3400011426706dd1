"""Turn the README into what a package index can show: python3 .ci/pypi_readme.py README.rst

On an index the paths of this checkout lead nowhere.  So a link to a file becomes the file's name, a picture that is a
file is left out, and one sentence says where the files are.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"`([^`<]+?)\s+<(?!https://)([^>`]+)>`__?")
BEGINNING = "\n__ `The promises`_\n"  # the end of the first paragraph
PICTURE = re.compile(r"^\.\. image:: (?!https://).*\n(?:   .*\n)*\n", re.MULTILINE)


def name_file(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"``{path}``" if text == path else f"{text} (``{path}``)"


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        text = path.read_text("utf-8")
        assert BEGINNING in text, "the README begins differently"
        text = text.replace(BEGINNING, f"{BEGINNING}\nThe files that this page names are in the source distribution.\n")
        path.write_text(LINK.sub(name_file, PICTURE.sub("", text)), "utf-8")


main()
