# SPDX-License-Identifier: Apache-2.0
"""The import table: a room imports the rooms below it, and heavy libraries stay in theirs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "satori_fast"

# What each room may import of the others. A room is a module or a package directly under
# satori_fast; "data.prompts" is one module of a room.
UPPER = {"types", "storage", "record_file", "grading", "data", "rollout", "profiling"}
LOWER = {"types", "storage", "kernels", "profiling"}
# About the process, not about training.
PROCESS = {"failures", "processes", "redaction", "termination"}
EVERYTHING_BELOW_STAGES = (
    UPPER
    | LOWER
    | {
        "algorithms",
        "backbone",
        "rewards",
        "experience",
        "synthesis",
        "evaluation",
        # Above the rooms whose tables of names it looks into.
        "config",
        "planning",
    }
)
ALLOWED: dict[str, set[str]] = {
    "__init__": {"api"},
    "types": set(),
    "storage": set(),
    "record_file": {"storage"},
    "config": {
        "config_agents",
        "config_checks",
        "config_data",
        "config_sections",
        "config_srl",
        "config_srl_checks",
        "config_stages",
        "config_text",
        "redaction",
        "data.formats",
    },
    # It looks names up in the tables of what there is, inside functions.
    "config_checks": {
        "config_data",
        "config_sections",
        "config_stages",
        "algorithms.recipe",
        "data.domains",
        "data.formats",
        "grading",
    },
    "config_srl_checks": {
        "config_checks",
        "config_data",
        "config_sections",
        "config_srl",
        "config_stages",
        "data.domains",
    },
    "config_data": {
        "config_sections",
        "data.domains",
        "data.field_mappings",
        "data.field_paths",
    },
    "config_text": {"config_sections"},
    "config_agents": {"config_sections", "redaction"},
    "config_srl": {"config_agents", "config_sections", "config_stages"},
    "config_stages": {"config_agents", "config_sections"},
    "config_sections": {"redaction"},
    "failures": {"redaction"},
    "processes": set(),
    "redaction": set(),
    "termination": set(),
    "grading": set(),
    "kernels": set(),
    "profiling": {"types", "storage", "redaction"},
    # Numbers of a config and of data sheets: it holds no model.
    "planning": {
        "config",
        "config_checks",
        "profiling",
        "data.domains",
        "data.tokenizer",
    },
    "data": LOWER | {"grading"},
    "algorithms": {"types", "kernels"},
    "backbone": LOWER | {"processes", "termination", "failures"},
    "rewards": {"types", "grading", "kernels", "data.formats", "data.prompts"},
    "rollout": {"types", "storage", "data", "profiling", *PROCESS},
    "experience": {"types", "storage", "data", "profiling", "algorithms", "rewards", "rollout"},
    "synthesis": UPPER | {"redaction"},
    # It judges answers and actions as rewards do.
    "evaluation": UPPER | {"rewards"},
    "stages": EVERYTHING_BELOW_STAGES | PROCESS,
    "cli": EVERYTHING_BELOW_STAGES | PROCESS | {"stages"},
    "api": EVERYTHING_BELOW_STAGES | {"stages"},
    "__main__": {"cli"},
}
# One module may do more than its room.
ALSO_ALLOWED = {"rollout.embedded_engine": {"backbone", "kernels"}}

# Libraries that only one place may import, as a module of satori_fast.
ONLY_IN = {
    "megatron": "backbone",
    "vllm": "rollout",
    "triton": "kernels.triton",
    "math_verify": "grading.algebra",
    "latex2sympy2_extended": "grading.algebra",
    "sympy": "grading.algebra",
    "mpmath": "grading.enclosures",
    "datasets": "data",
    "pyarrow": "data",
    "tokenizers": "data",
    "openai": "synthesis",
}
# Libraries that these rooms import inside functions only, so that importing the room stays cheap.
LAZY_IN = {
    "data": {"datasets", "tokenizers", "transformers", "pyarrow"},
    "grading": {"math_verify", "latex2sympy2_extended", "sympy", "mpmath"},
    "cli": {"torch", "rich"},
    "planning": {"torch"},
    "synthesis": {"openai", "jinja2"},
    "profiling": {"jinja2", "plotly"},
}
# Rooms whose other libraries are listed in full.
OUTSIDE = {
    "__init__": set(),
    "types": {"numpy", "torch"},
    "storage": set(),
    "record_file": set(),
    "failures": set(),
    "processes": set(),
    "redaction": set(),
    "termination": set(),
    "config": {"pydantic"},
    "config_checks": set(),
    "config_srl_checks": set(),
    "config_data": {"pydantic"},
    "config_text": set(),
    "config_sections": {"pydantic"},
    "config_agents": {"pydantic"},
    "config_srl": {"pydantic"},
    "config_stages": {"pydantic"},
    "cli": {"rich", "torch"},
    "grading": {"math_verify", "latex2sympy2_extended", "sympy", "mpmath"},
    "algorithms": {"numpy", "torch"},
    "rewards": {"numpy"},
    "synthesis": {"numpy", "openai", "jinja2"},
    "evaluation": {"numpy"},
    "planning": {"torch"},
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, in dots. lazy: inside a function. typing: only for a type checker."""

    name: str
    line: int
    lazy: bool
    typing: bool


def imports_of(source: str, module: str) -> list[Import]:
    """Every import of a module's source, wherever it stands; "from a import b" gives "a.b"."""
    found: list[Import] = []

    def visit(node: ast.AST, *, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *([base] if base else [])])
            found.extend(
                Import(f"{base}.{alias.name}", node.lineno, lazy, typing) for alias in node.names
            )
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                visit(child, lazy=lazy, typing=True)
            for child in node.orelse:
                visit(child, lazy=lazy, typing=typing)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, lazy=lazy, typing=typing)

    visit(ast.parse(source), lazy=False, typing=False)
    return found


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    # A package is named by its folder, but "satori_fast" itself keeps a room of its own.
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def modules() -> Iterator[tuple[str, str]]:
    """(name below satori_fast, source) of every module."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert paths
    for path in paths:
        yield module_name(path).removeprefix(f"{PACKAGE}."), path.read_text(encoding="utf-8")


def is_within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def room_imports() -> Iterator[tuple[str, str, Import]]:
    """(importing module, imported name below satori_fast, import) between different rooms."""
    for module, source in modules():
        for imported in imports_of(source, f"{PACKAGE}.{module}"):
            if not is_within(imported.name, PACKAGE):
                continue
            target = imported.name.removeprefix(PACKAGE).removeprefix(".")
            room = target.split(".")[0]
            # "from satori_fast import __version__" and the compiled module are not rooms.
            is_name_of_root = room in {"", "__version__", "_C"}
            if not is_name_of_root and room != module.split(".")[0]:
                yield module, target, imported


def test_every_room_is_in_the_table() -> None:
    assert {module.split(".")[0] for module, _ in modules()} <= set(ALLOWED)


def test_rooms_import_only_what_the_table_allows() -> None:
    broken = []
    for module, target, imported in room_imports():
        allowed = ALLOWED[module.split(".")[0]] | ALSO_ALLOWED.get(module, set())
        if not any(is_within(target, place) for place in allowed):
            broken.append(f"{module}:{imported.line} imports {target}")
    assert broken == []


def test_no_room_imports_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, target, _ in room_imports():
        ends = [name.split(".")[0] for name in (module, target)]
        if ends[0] != ends[1]:
            rooms.setdefault(ends[0], set()).add(ends[1])
    graphlib.TopologicalSorter(rooms).prepare()


def test_no_file_imports_in_a_circle() -> None:
    """Imports for a type checker count: what two files know of each other is one file."""
    files: dict[str, set[str]] = {}
    names = {module for module, _ in modules()}
    for module, source in modules():
        for imported in imports_of(source, f"{PACKAGE}.{module}"):
            target = imported.name.removeprefix(f"{PACKAGE}.")
            # "from a.b import c" is of the file a.b, or of a.b.c where that is a file.
            found = next((t for t in (target, target.rpartition(".")[0]) if t in names), None)
            if found is not None and found != module and not module.startswith(f"{found}."):
                files.setdefault(module, set()).add(found)
    graphlib.TopologicalSorter(files).prepare()


def test_heavy_libraries_stay_in_their_rooms() -> None:
    broken = []
    for module, source in modules():
        for imported in imports_of(source, f"{PACKAGE}.{module}"):
            library = imported.name.split(".")[0]
            place = ONLY_IN.get(library)
            if place is not None and not imported.typing and not is_within(module, place):
                broken.append(f"{module}:{imported.line} imports {library}, only for {place}")
    assert broken == []


def test_lazy_libraries_are_imported_inside_functions() -> None:
    broken = []
    for module, source in modules():
        lazy = LAZY_IN.get(module.split(".")[0], set())
        for imported in imports_of(source, f"{PACKAGE}.{module}"):
            library = imported.name.split(".")[0]
            if library in lazy and not imported.lazy and not imported.typing:
                broken.append(f"{module}:{imported.line} imports {library} at the top")
    assert broken == []


def test_listed_rooms_use_only_the_listed_libraries() -> None:
    broken = []
    for module, source in modules():
        room = module.split(".")[0]
        for imported in imports_of(source, f"{PACKAGE}.{module}"):
            library = imported.name.split(".")[0]
            known = {PACKAGE, *sys.stdlib_module_names, *OUTSIDE.get(room, {library})}
            if library not in known and not imported.typing:
                broken.append(f"{module}:{imported.line} imports {library}")
    assert broken == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("satori_fast", ("torch", "numpy", "pydantic")),
        ("satori_fast.config", ("torch", "transformers", "rich")),
        ("satori_fast.grading", ("torch", "sympy", "math_verify")),
        ("satori_fast.cli", ("torch", "transformers", "rich")),
        ("satori_fast.planning.page", ("torch", "transformers", "numpy")),
        ("satori_fast.planning.of_config", ("torch", "transformers", "numpy")),
        ("satori_fast.kernels", ("triton",)),
        ("satori_fast.data.sources", ("datasets", "transformers", "pyarrow", "megatron")),
        ("satori_fast.data.tokenizer", ("tokenizers", "transformers", "megatron")),
        ("satori_fast.rollout.engine", ("transformers", "megatron", "vllm")),
        ("satori_fast.evaluation.evaluate", ("transformers", "megatron", "vllm")),
    ],
)
def test_importing_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    program = (
        f"import sys, {module}\n"
        f"loaded = [name for name in {absent!r} if name in sys.modules]\n"
        "raise SystemExit(f'loads {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


# --- the walker itself ---------------------------------------------------------------------------


def test_walker_sees_imports_wherever_they_stand() -> None:
    source = """
import a.b
from c import d as e
if TYPE_CHECKING:
    from f import g
else:
    import h
def function():
    from i import j
    class Inner:
        import k
try:
    import l
except ImportError:
    pass
from . import m
from ..n import o
"""
    found = {(i.name, i.lazy, i.typing) for i in imports_of(source, "satori_fast.room.module")}
    assert found == {
        ("a.b", False, False),
        ("c.d", False, False),
        ("f.g", False, True),
        ("h", False, False),
        ("i.j", True, False),
        ("k", True, False),
        ("l", False, False),
        ("satori_fast.room.m", False, False),
        ("satori_fast.n.o", False, False),
    }


def test_walker_names_modules_and_packages() -> None:
    names = {module for module, _ in modules()}
    assert {"__init__", "types", "data", "data.formats", "data.prompts", "kernels.triton"} <= names
