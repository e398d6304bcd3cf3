# SPDX-License-Identifier: Apache-2.0
"""An engine that outlives the death of its process: started again, synced again, asked again.

Seeds belong to requests, so a fresh engine gives the answers that the dead one would have given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from satori_fast import termination
from satori_fast.rollout.distributed import Ranks, WrappedEngine
from satori_fast.rollout.engine import Completion, Engine, EngineDied, Request, SamplingParams
from satori_fast.rollout.weight_sync import (
    NamedTensor,
    SyncError,
    SyncReport,
    push_weights,
    weights_fingerprint,
)

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class ServedWeights(Protocol):
    """A model whose weights an engine can serve; a policy `Learner` is one."""

    def served_weights(self) -> Iterator[NamedTensor]:
        """(Hugging Face name, tensor), anew at each call; every rank must iterate."""
        ...


class Restarting(WrappedEngine):
    """An engine that is started again when it dies, with the weights that it was synced with last.

    max_restarts: deaths in a row after which `EngineDied` is raised for good.
    num_restarts: engines that were started again, since this was made.
    """

    def __init__(self, inner: Engine, ranks: Ranks, *, max_restarts: int) -> None:
        super().__init__(inner)
        self.num_restarts = 0
        self._ranks = ranks
        self._max_restarts = max_restarts
        self._push: Callable[[], SyncReport] | None = None
        self._served: ServedWeights | None = None

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion): as they finish, of an engine that cannot die."""
        if not self.can_restart:
            yield from self.inner.generate(requests, sampling)
            return
        yield from self._keep_trying(lambda: list(self.inner.generate(requests, sampling)))

    def sync(self, weights: ServedWeights, *, version: int) -> SyncReport:
        """Make the engine sample from `weights` under `version`; the same outcome on every rank.

        Every rank must call it: making the tensors is collective. See `weight_sync.push_weights`.
        """

        def push() -> SyncReport:
            outcome = _try_push(weights, self.inner, version)
            # Only the main process hears of what happened in a server.
            main_outcome = self._ranks.from_main(lambda: outcome)
            for result in (main_outcome, outcome):
                if isinstance(result, Exception):
                    raise result
            assert isinstance(outcome, SyncReport)
            return outcome

        self._push, self._served = push, weights
        return self._keep_trying(push)

    def weights_fingerprint(self) -> str:
        """Name of the weights that were synced last; every rank must call it."""
        assert self._served is not None, "an engine is synced before it is asked"
        return weights_fingerprint(self._served.served_weights())

    def metrics(self) -> dict[str, float]:
        """Number of restarts under its metric name, for an engine that can die."""
        return {"rollout/engine_restarts": float(self.num_restarts)} if self.can_restart else {}

    def _keep_trying(self, action: Callable[[], Result]) -> Result:
        num_deaths = 0
        while True:
            try:
                if num_deaths:
                    self._start_again(before=action)
                return action()
            except EngineDied as error:
                num_deaths += 1
                if self._ranks.any_rank(termination.is_asked()):
                    # A scheduler ends the whole job: the engine had the signal too.
                    raise termination.Terminated(
                        f"terminated, and the rollout engine with it ({error}); --resume continues "
                        "from the last checkpoint"
                    ) from error
                if num_deaths > self._max_restarts:
                    raise EngineDied(
                        f"the rollout engine died {num_deaths} times in a row "
                        f"(rollout.max_engine_restarts = {self._max_restarts}): {error}"
                    ) from error
                logger.warning("the rollout engine died, and is started again: %s", error)

    def _start_again(self, *, before: Callable[[], object]) -> None:
        assert self._push is not None, "an engine is synced before it is asked"
        self.num_restarts += 1
        self._ranks.on_main(self.inner.restart)
        if before is not self._push:
            self._push()


def _try_push(weights: ServedWeights, engine: Engine, version: int) -> SyncReport | Exception:
    """`push_weights`, with an error as its result."""
    try:
        return push_weights(weights.served_weights(), engine, version=version)
    except (EngineDied, SyncError) as error:
        return error
