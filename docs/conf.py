"""Sphinx's settings: ``python3 -m sphinx -W --keep-going -b html docs build/docs``."""

import re
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

extensions = ["sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["*-table.rst"]  # other pages include them
default_role = "py:obj"

# A name that leads nowhere is an error.  python-names.txt says where those of the standard library lead, so that no
# build needs the network: add a line for each name that a page comes to use.
nitpicky = True
intersphinx_mapping = {"python": ("https://docs.python.org/3", "python-names.txt")}
nitpick_ignore = [  # what signatures show, and no page describes
    ("py:class", "popart.message_framing.Readable"),
    ("py:class", "popart.options.SocketOptions"),
    ("py:class", "popart.server.AnyServer"),
    ("py:class", "popart.testing.server.AnyMailServer"),
    ("py:class", "popart.testing.server.MailServerOptions"),
    ("py:class", "pytest.FixtureRequest"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
highlight_language = "python"

pygments_dark_style = "monokai"  # Furo's own underlines the names of modules, as if they were links
html_theme = "furo"
html_title = f"popart {release}"
html_static_path = ["_static"]
html_css_files = ["popart.css"]
html_use_index = html_domain_indices = False  # nothing leads to them
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


def show_plain_signature(*event: Any) -> tuple[str, str] | None:
    """A default that is a read-only mapping looks like any other, and what nobody calls has no arguments."""
    name, signature, returned = event[2], *event[5:]
    if signature == "(*args, **kwargs)" or name.endswith(".SessionRecord"):  # typing.Protocol's, and the kit's own
        return "", returned
    return signature and (re.sub(r"mappingproxy\((.*?)\)", r"\1", signature), returned)


def setup(app: Any) -> None:
    app.add_lexer("pop3", SessionLexer)
    app.connect("autodoc-process-signature", show_plain_signature)
