"""Write docs/api.md: what can be imported from the three packages, by signature and docstring.

Example:
    python docs/api.py > docs/api.md
"""

import ast
import importlib
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"vae_runtime": "runtime", "vae_train": "train", "vae_export": "export"}
SAME = re.compile(r"(As `[\w.]+`\.)?")  # the docstring of a method that says nothing of its own
WIDTH = 100  # letters of a signature in one line
HEAD = """# The Python API

What can be imported from the top of the three packages, made from the docstrings by `python docs/api.py > docs/api.md`.
Brackets are shapes. ELBO, KL and log-probabilities are in nats per observation, times in seconds, sizes in bytes.
Every error that is raised on purpose is a `VaeError`; its text is one line: what, which, and what to do.
"""


@dataclass
class Module:
    """A module's source: what it defines, and where what it imports is defined."""

    name: str
    text: list[str]
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)  # name here: module and name there

    @classmethod
    @cache
    def read(cls, name: str) -> "Module | None":
        """The module of that name, None of other packages'."""
        package, _, rest = name.partition(".")
        if package not in PACKAGES:
            return None
        path = ROOT / PACKAGES[package] / package / f"{rest or '__init__'}.py"
        if not path.exists():
            return None
        text = path.read_text()
        found = cls(name, text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.defined[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.defined[node.targets[0].id] = node
        return found

    def find(self, name: str) -> "tuple[Module, ast.stmt] | None":
        """Where a name that is used here is defined: here, or in another module of these packages."""
        first, _, rest = name.partition(".")
        if rest:  # of a module that is imported as a whole
            there = Module.read(".".join(self.imported.get(first, ("", ""))))
            return there.find(rest) if there else None
        if first in self.defined:
            return self, self.defined[first]
        there = Module.read(self.imported.get(first, ("", ""))[0])
        return there.find(self.imported[first][1]) if there and there is not self else None


@dataclass
class Page:
    """The page in the making; `used` are the types in signatures that these packages define."""

    lines: list[str] = field(default_factory=list)
    used: dict[tuple[str, str], ast.stmt] = field(default_factory=dict)  # by name and module

    def function(self, module: Module, node: ast.FunctionDef, name: str, bound: bool = False) -> None:
        """A function's signature and docstring; bound: whether its first argument is the object itself."""
        arguments = [
            a for a in _arguments(node, module, self.type) if not (bound and a.split(":")[0] in ("self", "cls"))
        ]
        returns = "" if node.name == "__init__" else f" -> {self.type(node.returns, module)}"
        short = f"{name}({', '.join(arguments)}){returns}"
        lined = "".join(f"    {argument},\n" for argument in arguments)
        self.lines += ["```python", short if len(short) <= WIDTH else f"{name}(\n{lined}){returns}", "```", ""]
        self.text(ast.get_docstring(node), [a.lstrip("*").split(":")[0] for a in arguments])

    def type_of(self, module: Module, node: ast.ClassDef, name: str) -> None:
        """A class: its docstring, fields, and public methods and properties in their order."""
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
        named = {ast.unparse(f.target): f for f in fields if not ast.unparse(f.target).startswith("_")}
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        shown = [f"class {name}({bases})" if bases else f"class {name}"]
        shown += [
            f"    {name}: {self.type(f.annotation, module)}" + _value(f.value, module) for name, f in named.items()
        ]
        shown += [f"    {ast.unparse(f)}" for f in node.body if isinstance(f, ast.Assign)]
        if len(shown) > 1:
            shown[0] += ":"
        self.lines += ["```python", *shown, "```", ""]
        methods = [f for f in node.body if isinstance(f, ast.FunctionDef)]
        arguments = [argument.arg for f in methods if f.name == "__init__" for argument in f.args.args]
        self.text(ast.get_docstring(node), [*named, *arguments])
        for method in methods:
            marks = [ast.unparse(mark) for mark in method.decorator_list]
            if method.name == "__init__" and ast.get_docstring(method):
                self.function(module, method, node.name, bound=True)
            elif method.name.startswith("_") or SAME.fullmatch(ast.get_docstring(method) or ""):
                continue
            elif any("property" in mark for mark in marks):
                kind = self.type(method.returns, module)
                self.lines += [f"#### {node.name}.{method.name}", "", "```python", f"{method.name}: {kind}", "```", ""]
                self.text(ast.get_docstring(method), [])
            else:
                owner = node.name if "classmethod" in marks or "staticmethod" in marks else node.name.lower()
                self.lines += [f"#### {node.name}.{method.name}", ""]
                self.function(module, method, f"{owner}.{method.name}", bound="staticmethod" not in marks)

    def type(self, annotation: ast.expr | None, module: Module) -> str:
        """An annotation without its quotes; names of these packages in it are noted."""
        if annotation is None:
            return "Any"
        written = ast.unparse(_Unquoted().visit(annotation))
        for name in re.findall(r"[A-Za-z_][\w.]*", written):
            if found := module.find(name):
                self.used[name.rpartition(".")[2], found[0].name] = found[1]
        return written

    def text(self, docstring: str | None, arguments: list[str]) -> None:
        """A docstring as Markdown: paragraphs, lists of what begins with an argument's name, and code."""
        for paragraph in re.split(r"\n\n(?! {4})", docstring or ""):
            prose, example, code = paragraph.partition("Example:\n")
            for part in _parts(" ".join(prose.split()), arguments):
                self.lines += [part] if part.startswith("- ") else ["", part, ""]
            if example:
                self.lines += ["", "```python", textwrap.dedent(code), "```", ""]
        self.lines.append("")


def _parts(text: str, arguments: list[str]) -> Iterator[str]:
    """Prose, list items for the arguments that it describes, and what it says of errors."""
    names = "|".join(map(re.escape, arguments)) or "(?!)"
    for part in re.split(rf"(?:^|(?<=[.;:] ))(?=(?:(?:{names})(?:, | and )?)+: |Raises )", text):
        head, colon, rest = part.strip().partition(": ")
        described = re.split(", | and ", head)
        if colon and set(described) <= set(arguments):
            yield f"- {', '.join(f'`{name}`' for name in described)}: {_escaped(re.sub(';$', '.', rest))}"
        elif part.strip():
            yield _escaped(part.strip())


def _escaped(text: str) -> str:
    """Prose in which Markdown sees no marks but those of code."""
    pieces = re.split("(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<])", r"\\\1", p) for p in pieces)


class _Unquoted(ast.NodeTransformer):
    """Takes the quotes from the types in an annotation, but not from the words of a Literal."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if ast.unparse(node.value) == "Literal" else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node


def _arguments(node: ast.FunctionDef, module: Module, kind: Callable[[ast.expr | None, Module], str]) -> list[str]:
    """The arguments as they are written, with the values of the constants that they name."""

    def shown(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        written = stars + argument.arg
        if argument.annotation is not None:
            written += f": {kind(argument.annotation, module)}"
        return written if default is None else f"{written} = {_default(default, module)}"

    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    found = [shown(argument, default) for argument, default in zip(plain, defaults, strict=True)]
    found += [shown(given.vararg, None, "*")] if given.vararg else ["*"] if given.kwonlyargs else []
    found += [shown(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return found + ([shown(given.kwarg, None, "**")] if given.kwarg else [])


def _default(default: ast.expr, module: Module) -> str:
    """A default; of a named constant its value, where that is written as one."""
    found = module.find(ast.unparse(default)) if isinstance(default, ast.Name | ast.Attribute) else None
    if found and isinstance(found[1], ast.Assign) and isinstance(found[1].value, ast.Constant):
        default = found[1].value
    if isinstance(default, ast.Constant) and isinstance(default.value, str):
        return json.dumps(default.value)
    return ast.unparse(default)


def _value(default: ast.expr | None, module: Module) -> str:
    return "" if default is None or ast.unparse(default).startswith("field(") else f" = {_default(default, module)}"


def exported(package: str) -> dict[str, tuple[Module, ast.stmt]]:
    """What `from package import *` gives, in its order."""
    top = Module.read(package)
    assert top is not None
    found = {name: top.find(name) for name in getattr(importlib.import_module(package), "__all__", ())}
    return {name: there for name, there in found.items() if there}


def page() -> str:
    """The whole page."""
    made, packages = Page([HEAD]), {package: exported(package) for package in PACKAGES}
    for package, names in packages.items():
        links = ", ".join(f"[{name}](#{package.lower()}{name.lower()})" for name in names)
        made.lines += [f"- `{package}`: {links}"]
    for package, names in packages.items():
        top = Module.read(package)
        assert top is not None
        made.lines += ["", f"## {package}", ""]
        made.text(ast.get_docstring(ast.parse("\n".join(top.text))), [])
        for name, (module, node) in names.items():
            made.lines += [f"### {package}.{name}", ""]
            if isinstance(node, ast.FunctionDef):
                made.function(module, node, name)
            elif isinstance(node, ast.ClassDef):
                made.type_of(module, node, name)
    made.lines += ["## Other types in signatures", "", "| type | module | what |", "| --- | --- | --- |"]
    shown = {id(node) for names in packages.values() for _, node in names.values()}
    for (name, there), node in sorted(made.used.items(), key=lambda item: (item[0][0].lower(), item[0][1])):
        if id(node) not in shown and (defining := Module.read(there)):
            made.lines.append(f"| `{name}` | `{there}` | {_told(defining, node)} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(made.lines)).rstrip() + "\n"


def _told(module: Module, node: ast.stmt) -> str:
    """What a type is, in a line: a class by the first line of its docstring, another name by what it stands for."""
    if isinstance(node, ast.ClassDef):
        return _escaped((ast.get_docstring(node) or "").partition("\n")[0]).replace("|", "\\|")
    assert isinstance(node, ast.Assign)
    comment = module.text[node.lineno - 1].partition("  # ")[2]
    stands = f"`{ast.unparse(node.value)}`" + (f", {_escaped(comment)}" if comment else "")
    return stands.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
