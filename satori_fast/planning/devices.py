# SPDX-License-Identifier: Apache-2.0
"""A device to plan for, and the efficiencies that steps reach on it, each measured or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from satori_fast.profiling.data_sheets import DataSheet

_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A share of a peak that a part of a step reaches, 0 to 1, and where the number comes from.

    origin: "measured", by this project and kept in its repository, or "assumed".
    """

    share: float
    origin: Literal["measured", "assumed"]
    source: str


# Nothing of this project was measured on a GPU yet.
_ON_GPUS: Mapping[str, Efficiency] = MappingProxyType(
    {
        "decode": Efficiency(0.6, "assumed", "bandwidth; vLLM's kernels with graphs"),
        "forward": Efficiency(0.35, "assumed", "FLOP/s; as an update"),
        "update": Efficiency(
            0.35, "assumed", "FLOP/s; published: 0.14 to 0.37 (prime-rl), 0.31 to 0.40 (verl)"
        ),
        "link": Efficiency(0.7, "assumed", "bandwidth within a machine; NCCL, large messages"),
        "network": Efficiency(0.7, "assumed", "bandwidth between machines; NCCL, large messages"),
        "host": Efficiency(0.7, "assumed", "bandwidth to the host; pinned memory"),
    }
)
_STEP = "FLOP/s; benchmarks/results/step.json, W1, over the ceiling of linear_policy_loss.json"
_ON_CPUS: Mapping[str, Efficiency] = MappingProxyType(
    {
        "decode": Efficiency(0.6, "assumed", "bandwidth"),
        "forward": Efficiency(0.7, "measured", _STEP),
        "update": Efficiency(0.67, "measured", _STEP),
        "link": Efficiency(0.7, "assumed", "bandwidth; gloo through the loopback"),
        "network": Efficiency(0.7, "assumed", "bandwidth; gloo"),
        "host": Efficiency(0.7, "assumed", "bandwidth; copies"),
    }
)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the share of a host that a process has.

    memory_bytes: that can be filled. flops_per_s: of dense products of the run's type, bytes_per_s:
    of its memory. link_bytes_per_s, network_bytes_per_s, host_bytes_per_s: one way, to a rank of
    the same machine and of another one, and to the memory of the host.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: float
    flops_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    host_bytes_per_s: float

    @classmethod
    def of_sheet(cls, sheet: DataSheet) -> Device:
        """The GPU of a data sheet, products in bfloat16."""
        return cls(
            sheet.name,
            "cuda",
            sheet.memory_gb * _GIGA,
            sheet.tflops * 1e12,
            sheet.bandwidth_gbs * _GIGA,
            sheet.link_gbs * _GIGA,
            sheet.network_gbs * _GIGA,
            sheet.host_gbs * _GIGA,
        )

    @classmethod
    def of_host(cls, *, memory_bytes: float, flops_per_s: float, bytes_per_s: float) -> Device:
        """Processes on the CPUs of a machine. What they send goes through its memory; the network
        has 10 Gb/s, an assumption."""
        own = bytes_per_s / 4
        return cls("cpu", "cpu", memory_bytes, flops_per_s, bytes_per_s, own, 1.25e9, own)

    def slower(self, share: float) -> Device:
        """The same with this share of its products in a second."""
        return replace(self, flops_per_s=share * self.flops_per_s)

    @property
    def efficiencies(self) -> Mapping[str, Efficiency]:
        """Efficiencies by what a step does: compute ("decode", "forward", "update"), or send
        ("link", "network", "host")."""
        return _ON_GPUS if self.kind == "cuda" else _ON_CPUS

    def rate(self, part: str) -> float:
        """Rate that is reached in a part of a step: FLOP/s ("forward", "update") or bytes/s."""
        peaks = {
            "decode": self.bytes_per_s,
            "forward": self.flops_per_s,
            "update": self.flops_per_s,
            "link": self.link_bytes_per_s,
            "network": self.network_bytes_per_s,
            "host": self.host_bytes_per_s,
        }
        return peaks[part] * self.efficiencies[part].share
