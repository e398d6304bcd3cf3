# SPDX-License-Identifier: Apache-2.0
"""Random streams: the same for the same names, whatever was drawn before."""

from __future__ import annotations

import itertools

import numpy as np

from satori_fast.stages.seeds import Seeds


def test_a_seed_is_made_of_its_names_alone() -> None:
    # First four bytes of `printf 7/reinforce/3 | sha256sum`, without the lowest bit.
    assert Seeds(7).of("reinforce", 3) == 0x5FC5CBAD >> 1
    assert 0 <= Seeds(7).of() < 2**31


def test_names_and_roots_give_different_streams() -> None:
    names = [("a",), ("b",), ("a", 1), ("a", 2), ("a", "b"), ()]
    seeds = [Seeds(root).of(*name) for root, name in itertools.product(range(20), names)]
    assert len(set(seeds)) == len(seeds)


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    seeds = Seeds(0)
    first = seeds.rng("order").random(4)
    seeds.rng("other").random(100)
    assert np.array_equal(seeds.rng("order").random(4), first)
