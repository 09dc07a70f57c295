"""docs/api.md says what the docstrings say, and these say something of every argument."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def api() -> ModuleType:
    """The script that makes the page."""
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "api.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look there
    spec.loader.exec_module(found)
    return found


def test_the_page_is_made_of_the_docstrings_as_they_are(api: ModuleType) -> None:
    """Where this fails: python docs/api.py > docs/api.md."""
    assert (ROOT / "docs" / "api.md").read_text() == api.page(), "python docs/api.py > docs/api.md"


def test_every_public_name_is_there_with_what_its_object_says(api: ModuleType) -> None:
    """The names that the packages give, and for each its own docstring's first words, as Python finds them."""
    page = (ROOT / "docs" / "api.md").read_text().replace("\\", "")
    for package in api.PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            _, _, section = page.partition(f"\n### {package}.{name}\n")
            first, *_ = re.split(r"\n|\. ", inspect.getdoc(getattr(module, name)) or "")
            assert first and first in section.partition("\n### ")[0], name


def test_every_argument_is_spoken_of(api: ModuleType) -> None:
    """An argument's name is in its function's docstring, or in its class's; or others are as elsewhere."""
    silent = []
    for package in api.PACKAGES:
        for name, (_, node) in api.exported(package).items():
            methods = node.body if isinstance(node, ast.ClassDef) else [node]
            told = ast.get_docstring(node) or ""
            for method in methods:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    text = f"{told} {ast.get_docstring(method)}"
                    words = set(re.findall(r"\w+", text))
                    if re.search(r"others\s(are\s)?as\sin\s`|(^|\s)As\s`", text):
                        continue
                    given = [
                        a.arg for a in (*method.args.args, *method.args.kwonlyargs) if a.arg not in ("self", "cls")
                    ]
                    silent += [f"{name}.{method.name}: {a}" for a in given if a not in words]
    assert not silent, "\n".join(silent)
