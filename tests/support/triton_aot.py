"""Compile Triton kernels for GPUs that are not here, and read registers and spills from the compilers' reports.

python tests/support/triton_aot.py placerank.kernels.hard_negatives_triton
python tests/support/triton_aot.py placerank.kernels.codebook_triton sm_90 gfx942
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from placerank.kernels.variants import Variant

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Report(NamedTuple):
    """What a compiled kernel uses: registers a thread, bytes (CUDA) or registers (HIP) spilled, shared memory bytes.

    tensor_memory is Blackwell's, in columns of 512; a kernel that asks for more compiles to nothing.
    """

    registers: int
    spills: int
    shared: int
    tensor_memory: int


def _ptxas(ptx: str, capability: int) -> str:
    """ptxas's own report on a program; the binary is the one that Triton brings."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = "ptxas-blackwell" if capability >= 100 and (folder / "ptxas-blackwell").exists() else "ptxas"
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch, "no .target line in the PTX"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        command = [folder / name, "-v", f"--gpu-name={arch[1]}", source, "-o", os.devnull]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def compile_for(variant: Variant, target: str) -> Report:
    """Compile one variant; raises what Triton raises when it can't."""
    source = ASTSource(variant.kernel, signature=dict(variant.signature), constexprs=dict(variant.constants))
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    shared, tensor_memory = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0
    if target.startswith("sm_"):
        report = _ptxas(compiled.asm["ptx"], TARGETS[target].arch)
        registers = re.findall(r"Used (\d+) registers", report)
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
        assert registers and spills, f"ptxas reported nothing to read: {report}"
        return Report(max(map(int, registers)), sum(int(n) for pair in spills for n in pair), shared, tensor_memory)
    text = compiled.asm["amdgcn"]
    registers = re.findall(r"\.vgpr_count:\s+(\d+)", text)
    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)
    assert registers and spilled, "no register counts in the assembly"
    return Report(max(map(int, registers)), sum(map(int, spilled)), shared, tensor_memory)


def main(module: str, targets: list[str]) -> None:
    """One line a variant and target: name, target, registers, spills, shared, tensor_memory."""
    found: dict[str, Variant] = importlib.import_module(module).VARIANTS
    for name, variant in found.items():
        for target in targets:
            print(name, target, *compile_for(variant, target), flush=True)


if __name__ == "__main__":
    print("variant target registers spills shared tensor_memory", flush=True)
    main(sys.argv[1], sys.argv[2:] or list(TARGETS))
