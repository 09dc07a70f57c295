"""The map of modules in CONTRIBUTING.md: every module is there once, with the first line of its own docstring."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["runtime/vae_runtime", "train/vae_train", "export/vae_export"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_is_the_modules_own_words(package: str) -> None:
    """What the map says of each module is what the module says of itself, and there is no other."""
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n### {package}\n")
    shown = re.findall(r"^\| `(\w+)` \| (.+) \|$", re.split(r"^##", rest, flags=re.MULTILINE)[0], re.MULTILINE)
    modules = [path for path in (ROOT / package).glob("*.py") if not path.stem.startswith("__")]
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in modules}
    assert dict(shown) == {name: text.partition("\n")[0] for name, text in docstrings.items()}
    assert len(shown) == len(modules)
