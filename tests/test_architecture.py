"""The architecture: which layer may import which, and what the core never does."""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = """
    addresses config devices registry distributed documents errors events files
    images label_files label_space locks overrides parallel paths plots png
    recipe renamed setting_list sharding templates version visualize yaml_text
"""
LAYERS = [
    BASE.split(),
    ["synthetic"],
    ["data"],
    ["checkpoints"],
    ["models"],
    ["inference"],
    ["serving"],
    ["evaluation"],
    ["methods"],
    ["training"],
    ["study"],
    ["export"],
    ["api", "doctor"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
CORE = sorted((ROOT / "pinmem_core").rglob("*.py"))
CLI = sorted((ROOT / "pinmem_cli").rglob("*.py"))
ENDINGS = {"print", "exit", "quit", "_exit"}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return [*ast.walk(_tree(path))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path, *, top_level_only: bool = False, typing: bool = True) -> set[str]:
    nodes: Iterable[ast.AST] = _tree(path).body if top_level_only else _nodes(path)
    if not typing:
        only_typing = {
            id(inner)
            for node in nodes
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in only_typing]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_layer_imports_one_above_it():
    wrong = []
    for path in CORE:
        layer = path.relative_to(ROOT / "pinmem_core").parts[0].removesuffix(".py")
        for module in _imports(path) if layer != "__init__" else ():
            parts = module.split(".")
            ours = parts[0] == "pinmem_core" and len(parts) > 1 and parts[1] in LEVEL
            if ours and LEVEL[parts[1]] > LEVEL[layer]:
                wrong.append(f"{_name(path)} imports {module}")
            if parts[0] in ("typer", "rich", "pinmem_cli"):
                wrong.append(f"{_name(path)} imports {module}")
    assert wrong == []


def test_the_core_never_prints_or_exits():
    calls = {
        (_name(path), ast.unparse(node.func))
        for path in CORE
        for node in _nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        if getattr(node.func, "id", getattr(node.func, "attr", "")) in ENDINGS
    }
    assert {call for call in calls if call[1] in ENDINGS | {"sys.exit", "os._exit"}} == set()


def test_the_cli_imports_nothing_heavy_when_it_is_imported():
    light = {"addresses", "errors", "version", "events", "templates"}
    heavy = []
    for path in CLI:
        for module in _imports(path, top_level_only=True):
            parts = module.split(".")
            core = parts[0] == "pinmem_core" and len(parts) > 1 and parts[1] not in light
            if core or parts[0] in ("torch", "torchvision", "numpy", "PIL", "pydantic"):
                heavy.append(f"{_name(path)} imports {module}")
    assert heavy == []


def test_the_core_imports_what_few_commands_need_when_it_needs_it():
    early = {
        (_name(path), module)
        for path in CORE
        for module in _imports(path, top_level_only=True)
        if module.split(".")[0] in ("jinja2", "matplotlib")
    }
    assert early == set()


def test_functions_fit_on_a_screen():
    """Bodies do; a command's options are a list that may be longer."""
    long = [
        f"{path.name}:{node.name}"
        for path in [*CORE, *CLI]
        for node in _nodes(path)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.body[0].lineno > 55
    ]
    assert long == []


def test_no_modules_import_each_other():
    """Function-level imports count as well: none may hold a cycle open."""
    modules = {_module(path): path for path in [*CORE, *CLI]}
    imports = {
        name: _modules(_imports(path, typing=False), modules) - {name}
        for name, path in modules.items()
    }
    while leaves := [name for name, parts in imports.items() if not parts & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _modules(names: set[str], modules: dict[str, Path]) -> set[str]:
    """Return the imported modules; a package whose submodule is imported does not count."""
    parents = {name.rpartition(".")[0] for name in names if name in modules}
    return {name for name in names if name in modules and name not in parents}


TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_tests_use_public_names_only():
    private = {_name(path): _private_names(_nodes(path)) for path in TESTS}
    assert {path: names for path, names in private.items() if names} == {}


def _private_names(nodes: list[ast.AST]) -> set[str]:
    """Return the private names of pinmem that a test imports, reads or replaces."""
    ours = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            ours |= {
                alias.asname or alias.name.split(".")[0]
                for alias in node.names
                if alias.name.startswith("pinmem_")
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pinmem_"):
            ours |= {alias.asname or alias.name for alias in node.names}
    private = {name for name in ours if re.match("_[a-zA-Z]", name)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
            if ast.unparse(node.value) in ours:
                private.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            target, name = (ast.unparse(argument).strip("'") for argument in node.args[:2])
            if target in ours and re.match("_[a-zA-Z]", name):
                private.add(f"{target}.{name}")
            elif re.match(r"pinmem_.*\._[a-zA-Z]\w*$", target):
                private.add(target)
    return private


def test_the_page_on_the_architecture_names_files_and_layers_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", page)
    assert len(paths) > 40
    for path in paths:
        assert any((ROOT / base / path).exists() for base in ("pinmem_core", "."))
    layers = re.findall(r"^\| `(\w+)` \|", page[page.index("## Layers") :], re.MULTILINE)
    assert ["base", *layers] == ["base", *(layer[0] for layer in LAYERS[1:])]
