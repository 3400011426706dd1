"""Sphinx's settings: ``python3 -m sphinx -W --keep-going -b html docs build/docs``."""

import sys
from pathlib import Path
from typing import Any

from pygments.lexer import RegexLexer, bygroups
from pygments.token import Generic

sys.path.insert(0, str(Path(__file__).parent.parent))

import popart  # noqa: E402

project = "popart"
author = "The popart developers"
copyright = author
version = release = popart.__version__

extensions = ["sphinx.ext.autodoc"]
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
highlight_language = "python"

html_theme = "furo"
html_title = f"popart {release}"
html_copy_source = False
html_show_sourcelink = False


class SessionLexer(RegexLexer):
    """A POP3 session, with the client's input in bold."""

    name = "POP3"
    aliases = ["pop3"]
    tokens = {
        "root": [
            (r"(\$ |C: )(.*\n)", bygroups(Generic.Prompt, Generic.Strong)),
            (r".*\n", Generic.Output),
        ]
    }


def setup(app: Any) -> None:
    app.add_lexer("pop3", SessionLexer)
