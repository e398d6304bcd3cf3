# SPDX-License-Identifier: Apache-2.0
"""Every backbone test runs as a world of one process, freshly seeded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from satori_fast.backbone.parallel import (
    ParallelOptions,
    ParallelState,
    initialize_parallel,
    shutdown_parallel,
)


@pytest.fixture(autouse=True)
def one_process() -> ParallelState:
    return initialize_parallel(seed=0)


@pytest.fixture
def offloading() -> Iterator[None]:
    """A world in which optimizer state and frozen models wait on the host."""
    shutdown_parallel()
    initialize_parallel(seed=0, options=ParallelOptions(offload=True))
    yield
    shutdown_parallel()
