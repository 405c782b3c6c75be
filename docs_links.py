"""For the site of the docs: the README becomes its first page, and links out of docs/ become the names of files."""

import posixpath
import re
from pathlib import Path

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Called by MkDocs with the text of each page."""
    uri, folder = page.file.src_uri, posixpath.dirname(f"docs/{page.file.src_uri}")
    if uri == "index.md":
        markdown, folder = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8"), "."
    return LINK.sub(lambda link: _relink(link, folder, posixpath.dirname(uri)), markdown)


def _relink(link: re.Match, folder: str, site_folder: str) -> str:
    """A link of a page that lies in `folder` of the repository and in `site_folder` of the site."""
    text, target = link.groups()
    path, _, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    path = posixpath.normpath(posixpath.join(folder, path))
    if path == "README.md":
        path = "docs/index.md"
    if not path.startswith("docs/"):
        return f"`{path}`"
    inside = posixpath.relpath(path.removeprefix("docs/"), site_folder or ".")
    return f"{text}({inside}{'#' + anchor if anchor else ''})"
