# SPDX-License-Identifier: Apache-2.0
"""Answers that are Python text: values, and calls of a function that is run in the sandbox.

What a model wrote is never evaluated here: values and arguments must be literals, and the function
that the arguments are for runs in `sandbox`.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from satori_fast.evaluation.sandbox import PYTHON, Limits, run

_LONGEST = 10_000  # characters of a value; beyond, parsing takes long
_UNREADABLE = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_WRAP = re.compile(r"\\(?:text(?:tt)?|mathtt|mathrm|verb)\s*\{(.*)\}", re.DOTALL)
_LATEX_ESCAPES = re.compile(r"\\([{}_$%&#])")
# Exit statuses of the program below; 1 is Python's own, after an exception.
_OTHER_VALUE = 3
_PROGRAM = """\
import sys

{code}

sys.exit(0 if f({arguments}) == ({returns}) else {other})
"""
# A function of the set takes milliseconds; some inputs make it loop.
_LIMITS = Limits(seconds=20.0, cpu_seconds=2, memory_bytes=256 * 2**20, processes=4)


def bare_code(answer: str) -> str:
    r"""Python text out of a box, where a model may have written it as LaTeX has it.

    >>> bare_code(r"\texttt{\{'a\_b': 1\}}")
    "{'a_b': 1}"
    """
    text = answer.strip().strip("`$").strip()
    wrapped = _WRAP.fullmatch(text)
    return _LATEX_ESCAPES.sub(r"\1", wrapped[1] if wrapped else text).strip()


def same_literal(answer: str, gold: str) -> bool:
    """Whether two literals have the same value to Python; texts are compared where one is none.

    >>> same_literal("{'b': 2, 'a': 1}", "{'a':1,'b':2}"), same_literal("[1]", "(1,)")
    (True, False)
    """
    values = _literal(answer), _literal(gold)
    if values[0] is None or values[1] is None:
        return answer.strip() == gold.strip()
    try:
        return bool(values[0][0] == values[1][0])
    except RecursionError:
        return False


def literal_fault(gold: str) -> str:
    """Say why a gold is no value of Python, "" for one that is."""
    return "" if _literal(gold) is not None else "is no literal of Python"


def arguments_of(call: str) -> str | None:
    """The arguments of a call of f, or bare ones; None where they are no literals.

    >>> arguments_of("f(1, b='x')"), arguments_of("[1], 2"), arguments_of("f(open('x'))")
    ("1, b='x'", '[1], 2', None)
    """
    text = call.strip()
    if len(text) > _LONGEST:
        return None
    for source in (text, f"f({text})"):
        try:
            tree = ast.parse(source, mode="eval").body
            if not isinstance(tree, ast.Call) or ast.unparse(tree.func) != "f":
                continue
            for value in (*tree.args, *(keyword.value for keyword in tree.keywords)):
                ast.literal_eval(value)
        except _UNREADABLE:
            continue
        return source.strip()[2:-1].strip() if source.startswith("f(") else None
    return None


def _literal(text: str) -> tuple[Any] | None:
    """The value of a literal, in a tuple; None where it is none."""
    if len(text) > _LONGEST:
        return None
    try:
        return (ast.literal_eval(text.strip()),)
    except _UNREADABLE:
        return None


class CallRunner:
    """Runs functions with arguments that a model wrote, in the sandbox; each call once.

    trusted: run them without isolation where the machine has none (`sandbox.run`).
    """

    def __init__(self, *, trusted: bool = False) -> None:
        self._trusted = trusted
        self._known: dict[tuple[str, str, str], str] = {}

    def fault(self, code: str, call: str, *, returns: str) -> str:
        """Say why a call of the function f of `code` does not return the value; "" where it does.

        call: "f(1, 2)" or its arguments. returns: a literal. IsolationError where nothing isolates
        and the code is not trusted.
        """
        arguments = arguments_of(call)
        if arguments is None:
            return "not a call of f with literals"
        asked = (code, arguments, returns)
        if asked not in self._known:
            self._known[asked] = self._run(*asked)
        return self._known[asked]

    def _run(self, code: str, arguments: str, returns: str) -> str:
        program = _PROGRAM.format(
            code=code, arguments=arguments, returns=returns, other=_OTHER_VALUE
        )
        done = run(
            [*PYTHON, "call.py"], {"call.py": program}, limits=_LIMITS, trusted=self._trusted
        )
        if done.ended != "exit":
            return done.ended
        if done.returncode == _OTHER_VALUE:
            return "another value"
        lines = done.output.strip().splitlines()
        return "" if done.returncode == 0 else (lines[-1][:200] if lines else "it failed")
