"""Look into the built sdist and wheel: they hold what they should, and nothing else of note."""

import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

for path in sys.argv[1:]:
    if path.endswith(".whl"):
        names = set(zipfile.ZipFile(path).namelist())
        needed = {"py.typed", "testing/page.html", "testing/wire/pytest.ini", "testing/wire/conftest.py"}
        missing = {f"popart/{name}" for name in needed} - names
        assert not missing, f"the wheel lacks {missing}"
        assert any(name.endswith("/LICENSE") for name in names), names
        others = {name for name in names if not name.startswith("popart/") and ".dist-info/" not in name}
        assert others == {"pytest_popart.py"}, f"the wheel installs something else than popart: {others}"
    else:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in tarfile.open(path).getnames()}
        for wanted in ("LICENSE", "README.rst", "CHANGES.rst", "example_maildir.py", "popart/py.typed", "setup.cfg"):
            assert wanted in names, f"the sdist lacks {wanted}"
        assert any(name.startswith("tests/test_") for name in names), "the sdist lacks the tests"
    print(path.rpartition("/")[2], "holds", len(names), "files")
