# SPDX-License-Identifier: Apache-2.0
"""What kind of thing an answer is, labels of choices, and names that an answer may carry."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading import forms
from satori_fast.grading.forms import choice, is_name, read, split_top
from satori_fast.grading.spelling import clean


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("5", forms.Scalar),
        ("1,234", forms.Scalar),
        (r"\$1,200", forms.Scalar),
        ("3:45 PM", forms.Scalar),
        (r"\frac{x+1}{2}", forms.Scalar),
        ("(x+1)(x-1)", forms.Scalar),
        ("(5)", forms.Scalar),
        ("xy", forms.Scalar),
        ("a-b", forms.Scalar),
        ("AB", forms.Words),
        (r"\text{Monday}", forms.Words),
        ("1, 2", forms.Collection),
        (r"\{1,2\}", forms.Collection),
        (r"1 \text{ or } 2", forms.Collection),
        (r"\pm 2", forms.Collection),
        (r"x = \pm 2", forms.Collection),
        ("(1,2)", forms.Sequence),
        ("(1,234)", forms.Sequence),
        ("[3]", forms.Sequence),
        ("(1,2]", forms.Sequence),
        (r"\langle 1,2 \rangle", forms.Sequence),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", forms.Matrix),
        ("x = 5", forms.Chain),
        ("1 < x < 2", forms.Chain),
        ("1:2", forms.Ratio),
        (r"(1,2) \cup (3,4)", forms.Region),
        (r"\{x \mid x > 3\}", forms.Condition),
        (r"x \in [1,2]", forms.Condition),
        (r"\mathbb{R}", forms.NamedSet),
        (r"\text{all real numbers}", forms.NamedSet),
        (r"\emptyset", forms.NamedSet),
        (r"\{\}", forms.NamedSet),
        (r"\text{no real solutions}", forms.NamedSet),
    ],
)
def test_kinds(text: str, kind: type) -> None:
    assert isinstance(read(clean(text)), kind)


@given(st.text(alphabet=r"\{}[]()<>=,;:|&$ 12xU", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_has_a_form(text: str) -> None:
    read(clean(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A", ("A", "")),
        ("(A)", ("A", "")),
        ("A)", ("A", "")),
        (r"\text{(A)}", ("A", "")),
        ("(A) 5", ("A", "5")),
        ("B. red", ("B", "red")),
        (r"\text{B. }5", ("B", "5")),
        (r"\textbf{(B) } x^2", ("B", "x^2")),
        ("C: 12", ("C", "12")),
        ("K", None),
        ("A:B", None),
        ("(A)(B)", None),
        ("(A) + 1", None),
        ("A or B", None),
        ("(A) or (B)", None),
        ("A. 5 B. 6", None),
        ("5", None),
    ],
)
def test_choices(text: str, found: tuple[str, str] | None) -> None:
    assert choice(clean(text)) == found


def test_names() -> None:
    names = ["x", "x_1", "x_{10}", "f(x)", "f'(2)", r"\theta", "AB", r"\angle ABC", "m+n", "|AB|"]
    assert all(is_name(name) for name in [*names, r"\text{Area}", r"\sin\theta", r"\frac{m}{n}"])
    assert not any(is_name(text) for text in ["2x", "x^2", "-x", "|x|", "x+1", "5", "", "x = y"])


def test_only_separators_outside_all_brackets_split() -> None:
    assert split_top("(1,2), [3,4), {5,6}", {","})[0] == ["(1,2)", "[3,4)", "{5,6}"]
    assert split_top(r"\text{a, b}", {","})[0] == [r"\text{a, b}"]
