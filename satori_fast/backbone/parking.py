# SPDX-License-Identifier: Apache-2.0
"""Tensors that wait in host memory while nobody needs them.

A storage is copied to the host and given back to the allocator; when it is fetched it has its bytes
again, and every tensor that is a view of it (Megatron's buffers are full of them) is as it was.
`parallel.offload` turns it on; without, nothing here moves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]


def _none() -> tuple[Tensor, ...]:
    return ()


class Parking:
    """Memory of one learner's tensors, here or on the host.

    kept:    tensors whose bytes matter. They are asked for at each `park`: an optimizer makes its
             state in its first step.
    dropped: tensors that are written anew before they are read; `fetch` gives them room alone.
    staying: tensors that others read: a storage that one of them lies in is left alone.
    """

    def __init__(
        self, kept: Tensors, *, dropped: Tensors = _none, staying: Tensors = _none
    ) -> None:
        self._kept, self._dropped, self._staying = kept, dropped, staying
        self._away: list[tuple[torch.UntypedStorage, int, Tensor | None]] = []
        # Pinned memory is slow to get, so it is kept: by the storage that it is a copy of.
        self._copies: dict[int, Tensor] = {}

    @property
    def is_parked(self) -> bool:
        return bool(self._away)

    @property
    def num_bytes(self) -> int:
        """Bytes of the device that are free while it is parked."""
        return sum(size for _, size, _ in self._away)

    def park(self) -> None:
        """Free the memory. Does nothing when it is free."""
        if self._away:
            return
        staying = {_address(tensor) for tensor in self._staying()}
        kept = _storages(self._kept(), staying)
        dropped = _storages(self._dropped(), staying | kept.keys())
        copies = {address: self._copied(storage) for address, storage in kept.items()}
        _wait()
        self._away = [
            (storage, storage.nbytes(), copies.get(address))
            for address, storage in (kept | dropped).items()
        ]
        for storage, _, _ in self._away:
            storage.resize_(0)

    def fetch(self) -> None:
        """Have the tensors where they were. Does nothing when they are there."""
        away, self._away = self._away, []
        self._copies = {}
        for storage, size, copy in away:
            storage.resize_(size)
            if copy is not None:
                _bytes(storage).copy_(copy, non_blocking=True)
                self._copies[storage.data_ptr()] = copy
        _wait()

    def _copied(self, storage: torch.UntypedStorage) -> Tensor:
        held = _bytes(storage)
        copy = self._copies.get(storage.data_ptr())
        if copy is None or copy.numel() != held.numel():
            pinned = held.device.type == "cuda"
            copy = torch.empty(held.numel(), dtype=torch.uint8, pin_memory=pinned)
        return copy.copy_(held, non_blocking=True)


def _storages(tensors: Iterable[Tensor], without: set[int]) -> dict[int, torch.UntypedStorage]:
    """The storages of `tensors` by address, each once."""
    found = {_address(tensor): tensor.untyped_storage() for tensor in tensors if tensor.numel()}
    return {address: storage for address, storage in found.items() if address not in without}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
