"""The pages of the documentation that stand elsewhere: the documents of the root, and the help of each command.

MkDocs calls `on_files`. Nothing is written into the checkout, so each text lives once.
"""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from leasemesh.node.cli.app import run
from leasemesh.node.cli.commands import MODULE_BY_COMMAND

ROOT = Path(__file__).resolve().parent.parent
PAGE_BY_DOCUMENT = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
DOCUMENT_BY_PAGE = {page: document for document, page in PAGE_BY_DOCUMENT.items()}
HELP_COLUMNS = 100

_LINK = re.compile(r"\[([^]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for document, page in PAGE_BY_DOCUMENT.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text()))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links between documents lead to their pages, and links to code name the file."""
    return with_links(markdown, page.file.src_uri)


def with_links(markdown: str, page: str) -> str:
    """Return a page's text with links as the site has them.

    Args:
        markdown: the text, with links as they work in the repository.
        page: the page's path below `docs`.
    """
    source = DOCUMENT_BY_PAGE.get(page, f"docs/{page}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]  # MkDocs names it, and fails
        reached = PAGE_BY_DOCUMENT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not reached:
            return text  # code: the reader of the site has no checkout
        return f"[{text}]({posixpath.relpath(reached, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(link, markdown)


def commands_page() -> str:
    """Return the page of commands: the help of each, as it is printed."""
    parts = ["# The command line\n\nEvery command has `--json`, `--help` with examples, and the same exit codes.\n"]
    parts += [f"## leasemesh\n\n```text\n{help_of()}\n```\n"]
    parts += [f"## leasemesh {name}\n\n```text\n{help_of(name)}\n```\n" for name in MODULE_BY_COMMAND]
    return "\n".join(parts)


def help_of(*command: str) -> str:
    """Return what `--help` prints."""
    printed = StringIO()
    with mock.patch.dict(os.environ, COLUMNS=str(HELP_COLUMNS), NO_COLOR="1", TERM="dumb"), redirect_stdout(printed):
        assert run([*command, "--help"]) == 0
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())
