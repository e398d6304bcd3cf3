# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel configuration ahead of time and holds the result to a table of limits.

    python -m tests.kernels.triton.ahead             # check against limits.toml
    python -m tests.kernels.triton.ahead --update    # raise limits that are too low

Run by test_ahead.py, and by hand after a kernel was added or changed. Needs no GPU: registers,
stack (where registers spill), shared memory and tensor-core instructions are read from the machine
code. Not a test of what the kernels compute.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from satori_fast.kernels import triton as kernels
from satori_fast.kernels.triton.launch import Configuration

LIMITS = Path(__file__).with_name("limits.toml")
# Compute capabilities: A100, H100 and H200, B200.
TARGETS = (80, 90, 100)
# Registers change a little from one version of the compiler to the next.
REGISTER_SLACK = 8

TENSOR_CORE = re.compile(r"\b(?:HMMA|HGMMA|IMMA|UTC\w*MMA)\b")


class Figures(NamedTuple):
    """registers and stack bytes per thread, shared memory bytes per program, and the number of
    tensor-core instructions, which is the one that has a lower limit."""

    registers: int
    stack: int
    shared: int
    tensor_core: int

    def limits(self) -> "Figures":
        """What `--update` writes down for a kernel with these figures."""
        return self._replace(registers=min(255, self.registers + REGISTER_SLACK))

    def widened(self, other: "Figures") -> "Figures":
        """Limits that let pass what either of two lets pass."""
        wider = Figures(*map(max, self, other))
        return wider._replace(tensor_core=min(self.tensor_core, other.tensor_core))


def shipped() -> list[Configuration]:
    """Every configuration of every file."""
    modules = [importlib.import_module(f"{kernels.__name__}.{file}") for file in kernels.FILES]
    found = [configuration for module in modules for configuration in module.CONFIGURATIONS]
    names = [configuration.name for configuration in found]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ValueError(f"names of configurations must be unique: {', '.join(doubles)}")
    return found


def figures(configuration: Configuration, target: int) -> Figures:
    """What the compiler makes of `configuration` for compute capability `target`."""
    kernel = configuration.kernel
    types = {name: notation.split(":")[0] for name, notation in configuration.types.items()}
    types |= dict.fromkeys(configuration.constants, "constexpr")
    position = {name: (index,) for index, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs={position[name]: value for name, value in configuration.constants.items()},
        attrs={
            position[name]: [["tt.divisibility", 16]]
            for name, notation in configuration.types.items()
            if notation.endswith(":16")
        },
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", target, 32), options=configuration.options()
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", cubin.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump told no resource usage of {configuration.name}")
    registers, stack = map(int, found.groups())
    return Figures(registers, stack, compiled.metadata.shared, len(TENSOR_CORE.findall(text)))


def excesses(found: Figures, limits: Figures) -> Iterator[str]:
    """A line for each figure on the wrong side of its limit."""
    for name, figure, limit in zip(Figures._fields, found, limits, strict=True):
        is_lower = name == "tensor_core"
        if figure < limit if is_lower else figure > limit:
            yield f"{name} is {figure}, {'at least' if is_lower else 'at most'} {limit} allowed"


def read_limits(path: Path) -> dict[tuple[str, int], Figures]:
    """(configuration name, target) -> limits, from a table for each name and target."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        (name, int(target.removeprefix("sm_"))): Figures(**figures)
        for name, targets in tables.items()
        for target, figures in targets.items()
    }


def write_limits(path: Path, limits: dict[tuple[str, int], Figures]) -> None:
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# What the compiler may make of each kernel, written by `ahead.py --update`. That only",
        "# raises limits, so the table holds for every version of Triton it was run with.",
        "# At most: registers and bytes of stack (spilled registers) per thread, bytes of shared",
        "# memory per program. At least: tensor_core, instructions.",
    ]
    previous = None
    for (name, target), figures in limits.items():
        if name != previous:
            lines += ["", f'["{name}"]']
        previous = name
        fields = ", ".join(f"{field} = {value}" for field, value in figures._asdict().items())
        lines.append(f"sm_{target} = {{ {fields} }}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when every figure is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.triton.ahead")
    parser.add_argument("--update", action="store_true", help="raise limits that are too low")
    parser.add_argument("--limits", type=Path, default=LIMITS, help="file of the limits")
    parser.add_argument("--only", default="", help="only configurations whose name holds this")
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS))
    options = parser.parse_args(arguments)
    chosen = [c for c in shipped() if options.only in c.name]
    if not chosen:
        parser.error(f"--only {options.only}: no configuration has this in its name")
    limits = read_limits(options.limits) if options.limits.exists() else {}
    complaints: list[str] = []
    for configuration, target, found in _table(chosen, options.targets):
        key = (configuration.name, target)
        if options.update:
            wanted = found.limits()
            is_enough = key in limits and not list(excesses(found, limits[key]))
            limits[key] = limits[key] if is_enough else wanted.widened(limits.get(key, wanted))
        elif key not in limits:
            complaints.append(f"{configuration.name} sm_{target}: has no limits, run --update")
        else:
            problems = excesses(found, limits[key])
            complaints += [f"{configuration.name} sm_{target}: {problem}" for problem in problems]
    if options.update:
        known = {configuration.name for configuration in shipped()}
        write_limits(options.limits, {k: v for k, v in sorted(limits.items()) if k[0] in known})
    sys.stderr.writelines(f"{complaint}\n" for complaint in complaints)
    return 1 if complaints else 0


def _table(
    configurations: Iterable[Configuration], targets: Iterable[int]
) -> Iterator[tuple[Configuration, int, Figures]]:
    """Compiles one after the other and writes a line for each."""
    header = f"{'configuration':44}{'target':>8}" + "".join(f"{f:>13}" for f in Figures._fields)
    sys.stdout.write(header + "\n")
    for configuration in configurations:
        for target in targets:
            found = figures(configuration, target)
            row = "".join(f"{figure:>13}" for figure in found)
            sys.stdout.write(f"{configuration.name:44}{'sm_' + str(target):>8}{row}\n")
            sys.stdout.flush()
            yield configuration, target, found


if __name__ == "__main__":
    sys.exit(main())
