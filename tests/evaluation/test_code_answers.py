# SPDX-License-Identifier: Apache-2.0
"""Python values by their value, and calls that are run in the sandbox."""

from __future__ import annotations

import pytest

from satori_fast.evaluation.code_answers import (
    CallRunner,
    arguments_of,
    bare_code,
    literal_fault,
    same_literal,
)
from satori_fast.evaluation.sandbox import isolation_fault

needs_isolation = pytest.mark.skipif(
    isolation_fault() is not None, reason="the kernel allows no unprivileged namespaces"
)
DOUBLE = "def f(x, times=2):\n    return [x] * times"


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("{'b': 2, 'a': 1}", "{'a': 1, 'b': 2}", True),
        ('"a"', "'a'", True),
        (" [1,2]", "[1, 2]", True),
        ("[1]", "(1,)", False),
        ("'1'", "1", False),
        ("1.0", "1", True),
        ("a", "'a'", False),
        ("open('x')", "open('x')", True),
        ("1 +", "1", False),
        ("[" * 5000, "[]", False),
        ("9" * 20_000, "9", False),
        ("", "''", False),
    ],
)
def test_values(answer: str, gold: str, same: bool) -> None:
    assert same_literal(answer, gold) is same


@pytest.mark.parametrize(
    ("written", "code"),
    [
        (r"\texttt{\{'a\_b': 1\}}", "{'a_b': 1}"),
        ("`'a'`", "'a'"),
        (r"\text{[1, 2]}", "[1, 2]"),
        ("['a', '%']", "['a', '%']"),
    ],
)
def test_latex_around_python(written: str, code: str) -> None:
    assert bare_code(written) == code


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("f(1, [2], times=3)", "1, [2], times=3"),
        ("1, [2]", "1, [2]"),
        ("f()", ""),
        ("", ""),
        ("'f(1)'", "'f(1)'"),
        ("(1, ), (2, )", "(1, ), (2, )"),
        ("f(g(1))", None),
        ("g(1)", None),
        ("f(1)(2)", None),
        ("__import__('os').getcwd()", None),
        ("f(1", None),
        ("*[1]", None),
        ("(" * 1000, None),
    ],
)
def test_arguments_are_literals(call: str, arguments: str | None) -> None:
    assert arguments_of(call) == arguments


def test_golds_that_are_no_values() -> None:
    assert literal_fault("{'a': (1, None)}") == ""
    assert literal_fault("<object>") == "is no literal of Python"


@needs_isolation
def test_calls_are_run() -> None:
    runner = CallRunner()
    assert runner.fault(DOUBLE, "f('a')", returns="['a', 'a']") == ""
    assert runner.fault(DOUBLE, "'a', 1", returns="['a']") == ""
    assert runner.fault(DOUBLE, "f('a')", returns="['a']") == "another value"
    assert runner.fault(DOUBLE, "f(1, 'x')", returns="[1]").startswith("TypeError")
    assert runner.fault(DOUBLE, "f(exit())", returns="[1]") == "not a call of f with literals"
    endless = "def f(x):\n    while x:\n        pass\n    return x"
    assert runner.fault(endless, "f(1)", returns="0") == "cpu"
    assert runner.fault(endless, "f(0)", returns="0") == ""
