# SPDX-License-Identifier: Apache-2.0
"""Stacks of a process that are asked for by another."""

from __future__ import annotations

import re
import threading

from satori_fast.backbone.stacks import place, stacks


def test_the_stack_of_every_thread_is_shown_main_thread_first() -> None:
    leave = threading.Event()

    def waiting_in_vain() -> None:
        leave.wait(60)

    thread = threading.Thread(target=waiting_in_vain, name="one that waits")
    thread.start()
    try:
        text = stacks()
    finally:
        leave.set()
        thread.join()
    assert text.startswith("MainThread:\n")
    assert "in test_the_stack_of_every_thread_is_shown_main_thread_first" in text
    _, _, other = text.partition("one that waits:\n")
    assert "in waiting_in_vain" in other


def test_a_place_is_the_innermost_line_of_this_package() -> None:
    # Asked from here, that is the function itself.
    assert re.fullmatch(r"stacks\.py:[0-9]+ in place", place())
