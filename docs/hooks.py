"""What the site needs besides the pages: formulas as MathML, and the files of the repository that pages link to.

Example:
    pip install '.[docs]' && mkdocs build  # into build/site
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")  # what a link out of the folder of the pages leads to
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Put what is linked to beside the pages."""
    linked = {path for page in (ROOT / "docs").glob("*.md") for path in OUTSIDE.findall(page.read_text())}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are on the site, and formulas that a browser shows by itself."""
    markdown = OUTSIDE.sub(r"](\1", markdown)
    parts = CODE.split(markdown)
    parts[::2] = [_with_formulas(text) for text in parts[::2]]
    return "".join(parts)


def _with_formulas(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: convert(found[1].strip(), display="block"), text, flags=re.DOTALL)
    return re.sub(r"\$([^$\n]+)\$", lambda found: f"<span>{convert(found[1].strip())}</span>", text)  # no block
