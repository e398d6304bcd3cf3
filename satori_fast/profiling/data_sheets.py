# SPDX-License-Identifier: Apache-2.0
"""The data sheets of known GPUs: speed, memory and connections, a row each. Importable without
torch.

Peaks of a device at hand are `peaks`; what a run would need of one is `planning`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataSheet:
    """A GPU as its maker describes it.

    name:          what people call it, in lower case. cuda_name: part of CUDA's device name.
    tflops:        dense products of bfloat16, TFLOP/s.
    bandwidth_gbs: of its memory, GB/s.
    memory_gb:     GB (10^9 bytes). Makers write GB for GiB: the 7 % that a card has beyond this
                   number are what CUDA, the buffers of collectives and fragmentation take.
    link_gbs:      to another GPU of the machine, one way, GB/s.
    network_gbs:   to another machine, one way and for each GPU, GB/s.
    host_gbs:      to the memory of its host, one way, GB/s: PCIe, 16 lanes.
    """

    name: str
    cuda_name: str
    tflops: float
    bandwidth_gbs: float
    memory_gb: float
    link_gbs: float
    network_gbs: float
    host_gbs: float


# The first whose `cuda_name` fits counts. NVIDIA's data sheets often print twice the TFLOP/s, with
# 2:4 sparsity: these are without. Links are printed as the sum of both ways: these are one.
# Networks are those of NVIDIA's own machines (DGX data sheets: ConnectX-7 of 400 Gb/s for each GPU,
# ConnectX-6 of 200 Gb/s in the DGX A100); cards for other machines have 100 Gb/s, an assumption.
# Hosts: PCIe Gen5 128 GB/s both ways from Hopper on, Gen4 64 before.
DATA_SHEETS: tuple[DataSheet, ...] = (
    # NVIDIA DGX B200 data sheet: 36 PFLOPS dense FP8 of 8 GPUs, half in bfloat16; 1,440 GB and
    # 64 TB/s of 8; fifth-generation NVLink, 14.4 TB/s of 8.
    DataSheet("b200", "B200", 2250.0, 8000.0, 180.0, 900.0, 50.0, 64.0),
    # NVIDIA H200 Tensor Core GPU data sheet: NVL 1671 with sparsity, SXM 1979; 141 GB, 4.8 TB/s;
    # NVLink 900 GB/s.
    DataSheet("h200-nvl", "H200 NVL", 835.5, 4800.0, 141.0, 450.0, 12.5, 64.0),
    DataSheet("h200", "H200", 989.4, 4800.0, 141.0, 450.0, 50.0, 64.0),
    # NVIDIA H100 Tensor Core GPU data sheet: NVL 1671 with sparsity, 94 GB, 3.9 TB/s, NVLink
    # 600 GB/s; PCIe 1513 with sparsity, 80 GB, 2 TB/s, PCIe Gen5 128 GB/s; SXM 1979 with sparsity,
    # 80 GB, 3.35 TB/s, NVLink 900 GB/s.
    DataSheet("h100-nvl", "H100 NVL", 835.5, 3900.0, 94.0, 300.0, 12.5, 64.0),
    DataSheet("h100-pcie", "H100 PCIe", 756.0, 2000.0, 80.0, 64.0, 12.5, 64.0),
    DataSheet("h100", "H100", 989.4, 3350.0, 80.0, 450.0, 50.0, 64.0),
    # NVIDIA A100 data sheet: 312 without sparsity; 40 GB 1555 GB/s, 80 GB PCIe 1935, SXM 2039;
    # SXM NVLink 600 GB/s, PCIe Gen4 64 GB/s.
    DataSheet("a100-40gb-pcie", "A100-PCIE-40GB", 312.0, 1555.0, 40.0, 32.0, 12.5, 32.0),
    DataSheet("a100-40gb", "A100-SXM4-40GB", 312.0, 1555.0, 40.0, 300.0, 25.0, 32.0),
    DataSheet("a100-pcie", "A100 80GB PCIe", 312.0, 1935.0, 80.0, 32.0, 12.5, 32.0),
    DataSheet("a100", "A100-SXM4-80GB", 312.0, 2039.0, 80.0, 300.0, 25.0, 32.0),
    # NVIDIA L40S data sheet: 362.05 without sparsity, 48 GB (with ECC 46,068 MiB, so that 45 leave
    # the 7 %), 864 GB/s, PCIe Gen4 64 GB/s.
    DataSheet("l40s", "L40S", 362.05, 864.0, 45.0, 32.0, 12.5, 32.0),
    # NVIDIA Ada GPU architecture white paper, appendix A: bfloat16 with float32 accumulation 165.2;
    # 24 GB, 1008 GB/s, PCIe Gen4.
    DataSheet("rtx-4090", "RTX 4090", 165.2, 1008.0, 24.0, 32.0, 12.5, 32.0),
)


def data_sheet_of(cuda_name: str) -> DataSheet | None:
    """The sheet of the GPU that CUDA calls by this name; None for one that is not in the table."""
    # A slice (MIG) is a part of the GPU that its name begins with.
    if "MIG" in cuda_name.split():
        return None
    for sheet in DATA_SHEETS:
        if f" {sheet.cuda_name}" in f" {cuda_name}":  # a GH200 is no H200
            return sheet
    return None


def data_sheet_named(name: str) -> DataSheet:
    """The sheet of the GPU that people call by this name, in any case. ValueError lists the known
    names."""
    for sheet in DATA_SHEETS:
        if sheet.name == name.lower():
            return sheet
    known = ", ".join(sheet.name for sheet in DATA_SHEETS)
    raise ValueError(f"GPU {name!r} is not known; known are {known}")
