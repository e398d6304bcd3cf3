# SPDX-License-Identifier: Apache-2.0
"""Ceilings and manners: sizes, parameters, docstrings, licences, names, and what never ships."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
MAX_PARAMETERS = 8
MAX_POSITIONAL = 5
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}

# The kernels' signatures are fixed by the schemas of torch.library, which know no records.
SCHEMA_ROOM = "satori_fast/kernels"
# Signatures that the design fixes: their options were positional from the start.
FIXED = {"annotate", "export_hf", "initialize_parallel"}
# Overridden methods of other libraries keep those libraries' signatures.
OVERRIDES = {"forward", "backward", "setup_context", "sharded_state_dict"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def sources() -> list[Path]:
    """Every file that someone wrote and that goes into the repository's trees."""
    trees = ("satori_fast", "tests", "csrc", "benchmarks", "configs", "docs")
    suffixes = {".py", ".cpp", ".h", ".txt", ".toml", ".md"}
    found = [p for tree in trees for p in (ROOT / tree).rglob("*") if p.suffix in suffixes]
    found += [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md")]
    return sorted(path for path in found if path.is_file())


def functions(path: Path) -> Iterator[tuple[Function, bool, bool]]:
    """(function, is a method, can be called from outside) of a module, nested ones included."""

    def visit(
        node: ast.AST, *, in_class: bool, public: bool
    ) -> Iterator[tuple[Function, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                is_public = public and not child.name.startswith("_")
                yield child, in_class, is_public
                yield from visit(child, in_class=False, public=False)
            elif isinstance(child, ast.ClassDef):
                is_public = public and not child.name.startswith("_")
                yield from visit(child, in_class=True, public=is_public)
            else:
                yield from visit(child, in_class=in_class, public=public)

    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from visit(tree, in_class=False, public=True)


def public_signatures() -> Iterator[tuple[str, list[str], list[str], int]]:
    """(place, positional without self, those of them with a default, all parameters)."""
    for path in python_files("satori_fast"):
        if relative(path).startswith(SCHEMA_ROOM):
            continue
        for function, is_method, is_public in functions(path):
            if not is_public or (is_method and function.name in OVERRIDES):
                continue
            arguments = function.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
            is_static = any(
                isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list
            )
            names = names[1:] if is_method and not is_static else names
            optional = names[len(names) - min(len(arguments.defaults), len(names)) :]
            place = f"{relative(path)}:{function.lineno} {function.name}"
            yield place, names, optional, len(names) + len(arguments.kwonlyargs)


# --- sizes ---------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*python_files("satori_fast", "benchmarks"), *(ROOT / "csrc").glob("*.[ch]*")]
    }
    assert {p: n for p, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    broken = []
    for path in python_files("satori_fast", "tests", "benchmarks"):
        in_kernels = relative(path).startswith("satori_fast/kernels/triton")
        ceiling = MAX_KERNEL_LINES if in_kernels else MAX_FUNCTION_LINES
        for function, _, _ in functions(path):
            assert function.end_lineno is not None
            num_lines = function.end_lineno - function.lineno + 1
            if num_lines > ceiling:
                broken.append(f"{relative(path)}:{function.lineno} {function.name}: {num_lines}")
    assert broken == []


def test_public_functions_have_few_parameters() -> None:
    assert [place for place, _, _, num in public_signatures() if num > MAX_PARAMETERS] == []


def test_options_are_keyword_only_after_the_second_parameter() -> None:
    # What a function works on may be positional (`collect(engine, problems, sampling)`); what only
    # changes how it works may not, from the third parameter on.
    broken = [
        f"{place}: {names[2:]}"
        for place, names, optional, _ in public_signatures()
        if set(names[2:]) & set(optional) and place.split()[-1] not in FIXED
    ]
    assert broken == []


def test_few_parameters_are_positional() -> None:
    broken = [place for place, names, _, _ in public_signatures() if len(names) > MAX_POSITIONAL]
    assert broken == []


# --- manners -------------------------------------------------------------------------------------


def test_every_module_says_what_it_is_for() -> None:
    broken = [
        relative(path)
        for path in python_files("satori_fast", "tests", "benchmarks")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert broken == []


# A docstring opens with a verb or a noun, so that it stands alone in `help()`; a predicate's may
# open with "Whether".
DANGLING = re.compile(
    r"(what|how|where|which|who|whose|when|why|that|of|so|those|these|this|they|it|if|as|for|from"
    r"|with|without|by|on|in|at|to|and|not|is|are|has|does|do|because|after|before|under|over"
    r"|between|among)\b",
    re.IGNORECASE,
)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """(place, first line) of the docstrings of a module and of what it makes public."""

    def visit(node: ast.AST) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
                continue
            if text := ast.get_docstring(child):
                yield f"{relative(path)}:{child.lineno} {child.name}", text.split("\n")[0]
            if isinstance(child, ast.ClassDef):
                yield from visit(child)

    tree = ast.parse(path.read_text(encoding="utf-8"))
    if text := ast.get_docstring(tree):
        yield relative(path), text.split("\n")[0]
    yield from visit(tree)


def test_docstrings_stand_alone() -> None:
    broken = [
        f"{place}: {line}"
        for path in python_files("satori_fast")
        for place, line in docstrings(path)
        if DANGLING.match(line)
    ]
    assert broken == []


def test_every_source_opens_with_its_licence() -> None:
    broken = []
    for path in [*python_files("satori_fast", "tests", "benchmarks"), *(ROOT / "csrc").rglob("*")]:
        comment = {".py": "#", ".txt": "#", ".cpp": "//", ".h": "//"}.get(path.suffix)
        if comment is None:
            continue
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        if first != f"{comment} SPDX-License-Identifier: Apache-2.0":
            broken.append(relative(path))
    assert broken == []


def test_no_file_has_a_name_that_means_nothing() -> None:
    broken = [relative(p) for p in sources() if p.stem.lower() in FORBIDDEN_NAMES]
    broken += [
        relative(path)
        for tree in ("satori_fast", "tests", "csrc", "benchmarks")
        for path in (ROOT / tree).rglob("*")
        if path.is_dir() and path.name.lower() in FORBIDDEN_NAMES
    ]
    assert broken == []


def test_sources_are_ascii() -> None:
    broken = [
        relative(path)
        for path in [*python_files("satori_fast"), *(ROOT / "csrc").glob("*.[ch]*")]
        if not path.read_text(encoding="utf-8").isascii()
    ]
    assert broken == []


# Put together here, so that this file does not find itself.
NEVER = {
    "an assertion of nothing": r"assert True\b",
    "a note to oneself": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a placeholder": r"\bNotImplemented" + r"Error\b",
    "half of a merge": r"^(<{7}|={7}$|>{7})",
    "a mock": r"\b(unittest\." + r"mock|Magic" + r"Mock)\b",
    "a home or work folder": r"(?<![\w.])/(work|home|root|Users|mnt|data)/\w",
    "the folder beside the checkout": r"\.\./" + r"shared",
}


@pytest.mark.parametrize("what", NEVER)
def test_what_never_ships(what: str) -> None:
    pattern = re.compile(NEVER[what])
    broken = []
    for path in sources():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                broken.append(f"{relative(path)}:{number}: {line.strip()}")
    assert broken == []


def test_tests_skip_only_through_conftest_and_markers() -> None:
    call = re.compile(r"pytest\." + r"skip\(")
    broken = [
        relative(path)
        for path in python_files("tests")
        if path.name != "conftest.py" and call.search(path.read_text(encoding="utf-8"))
    ]
    assert broken == []


def test_every_test_file_mirrors_a_module() -> None:
    free_folders = {"tests/architecture", "tests/invariants", "tests/drill"}
    # Several processes, pages in a browser, mistakes of every kind: subjects of a package, not of a
    # module.
    free_names = {"test_malformed.py", "test_ranks.py", "test_report_browser.py"}
    broken = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = relative(path.parent)
        if folder in free_folders or path.name in free_names:
            continue
        name = path.name.removeprefix("test_")
        # tests/benchmarks mirrors the tree of that name, every other folder the package.
        package = ROOT if folder == "tests/benchmarks" else ROOT / "satori_fast"
        module = package / folder.removeprefix("tests").lstrip("/") / name
        # A tool of the tests has its own test beside it.
        places = (module, module.with_suffix(""), path.with_name(name))
        if not any(place.exists() for place in places):
            broken.append(relative(path))
    assert broken == []


# Modules without a test file of their own, and where their behaviour is tested.
TESTED_ELSEWHERE = {
    "__main__.py": "test_cli starts it",
    "config_agents.py": "test_config and test_config_checks, through `config`",
    "config_sections.py": "test_config and test_config_checks, through `config`",
    "config_srl.py": "test_config and test_config_checks, through `config`",
    "config_stages.py": "test_config and test_config_checks, through `config`",
    "data/field_mappings.py": "a table: test_sources reads every row",
    "evaluation/sandbox_worker.py": "runs inside the sandbox: test_sandbox",
    "evaluation/unittest_worker.py": "runs inside the sandbox: test_patches",
    "kernels/reference_layers.py": "test_layers compares it with torch",
    "kernels/schemas.py": "test_ops calls every operator",
    "kernels/triton/head.py": "through its operators: test_linear_logprob, test_linear_policy_loss",
    "kernels/triton/launch.py": "through every kernel; compiled without a GPU by test_ahead",
    "kernels/triton/products.py": "through the output head: test_linear_logprob",
    "kernels/triton/stash.py": "through the output head: test_linear_policy_loss",
    "rollout/server_worker.py": "runs inside vLLM: test_server_engine",
    "rollout/vllm_worker.py": "runs inside vLLM: test_vllm_engine",
}


def test_every_module_has_its_test_file() -> None:
    missing = [
        module
        for path in python_files("satori_fast")
        if path.name != "__init__.py"
        and (module := relative(path).removeprefix("satori_fast/"))
        and not (ROOT / "tests" / module).with_name(f"test_{path.name}").exists()
    ]
    assert sorted(missing) == sorted(TESTED_ELSEWHERE)
