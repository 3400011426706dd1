"""Look into the built sdist and wheel: they have the files that are committed, and an index can show and sort them.

python3 .ci/check_packages.py SDIST WHEEL, in a clone of what they were built from.
"""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import PurePosixPath

import readme_renderer.rst
import trove_classifiers


def committed(*paths: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *paths], stdout=subprocess.PIPE, text=True, check=True)
    return set(done.stdout.splitlines())


def check_sdist(path: str) -> None:
    """It has every file but those for this project's own machines, whose names begin with a dot."""
    with tarfile.open(path) as sdist:
        files = [PurePosixPath(member.name) for member in sdist if member.isfile()]
    names = {str(PurePosixPath(*file.parts[1:])) for file in files if ".egg-info" not in str(file)}
    wanted = {name for name in committed() if not name.startswith(".")} | {"PKG-INFO"}
    assert names == wanted, f"the sdist lacks or adds {names ^ wanted}"
    print(path.rpartition("/")[2], "holds", len(names), "files")


def check_wheel(path: str) -> None:
    """It installs popart and the pytest plugin, with types, licence and entry point, and nothing else."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        information = {PurePosixPath(name).name: name for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(wheel.read(information["METADATA"]))
        assert b"pytest_popart" in wheel.read(information["entry_points.txt"])
    assert "LICENSE" in information, "the wheel lacks the licence"
    wanted = committed("popart", "pytest_popart.py")
    assert names - set(information.values()) == wanted, f"the wheel lacks or adds {names ^ wanted}"
    unknown = set(metadata.get_all("Classifier", [])) - trove_classifiers.classifiers
    assert not unknown, f"an index refuses these classifiers: {unknown}"
    check_description(str(metadata.get_payload(decode=True), "utf-8"))
    print(path.rpartition("/")[2], "holds", len(names), "files")


def check_description(text: str) -> None:
    """An index renders it, and none of its links and pictures is a path of this checkout."""
    html = readme_renderer.rst.render(text, stream=sys.stderr)
    assert html, "an index cannot render the description"
    links = set(re.findall(r'(?:href|src)="([^"]*)"', html))
    places = {f"#{place}" for place in re.findall(r'id="([^"]*)"', html)}
    dead = {link for link in links - places if not link.startswith("https://")}
    assert not dead, f"these links lead nowhere on an index: {dead}"


for argument in sys.argv[1:]:
    (check_wheel if argument.endswith(".whl") else check_sdist)(argument)
