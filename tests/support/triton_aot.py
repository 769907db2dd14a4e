"""Compile Triton kernels for GPUs that are not here, as they would be launched, and read what they take.

python tests/support/triton_aot.py placerank.kernels.hard_negatives_triton placerank.kernels.tiles_triton
python tests/support/triton_aot.py placerank.kernels.codebook_triton --targets sm_90 gfx942
python tests/support/triton_aot.py --update

What came of compiling is kept in compiled-triton-VERSION.csv beside this file, and compiled again only where what it
comes of has changed: the kernel's text and that of what it calls, its types, constants and options, the target.
``--update`` compiles what the tests will ask for and is not there, and drops what they no longer ask for. The file's
diff then tells what a change of a kernel did to its registers and shared memory.
"""

import argparse
import csv
import importlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple
from zlib import crc32

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import triton
from compiled import KEPT, OF_KERNELS, OF_RANKERS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from placerank.kernels.variants import Variant

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Report(NamedTuple):
    """What a compiled kernel uses: registers a thread, spilled ones, shared memory bytes.

    spills are bytes of stack a thread (CUDA), or registers (HIP). tensor_memory is Blackwell's, in columns of 512; a
    kernel that asks for more compiles to nothing.
    """

    registers: int
    spills: int
    shared: int
    tensor_memory: int


COLUMNS = ("module", "variant", "target", *Report._fields, "key")
# One in so many of the known is compiled all the same, and has to come out as it is written.
AGAIN = 40


def asked(variant: Variant, target: str) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any], Any]:
    """Signature, constants, attributes and options, as a launch on the target asks its compiler for them."""
    backend, names = make_backend(TARGETS[target]), variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    constants = {(i,): variant.constants[name] for i, name in enumerate(names) if name in variant.constants}
    attributes = {(names.index(name),): backend.parse_attr(seen) for name, seen in variant.attributes.items()}
    return signature, constants, attributes, backend.parse_options(dict(variant.options))


def compile_for(variant: Variant, target: str) -> Report:
    """Compile one variant; raises what Triton raises when it can't."""
    *source, options = asked(variant, target)
    compiled = triton.compile(ASTSource(variant.kernel, *source), target=TARGETS[target], options=options.__dict__)
    shared, tensor_memory = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0
    if target.startswith("sm_"):
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
            text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
        used = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
        assert used, f"cuobjdump told nothing that can be read: {text}"
        return Report(int(used[1]), int(used[2]) + int(used[3]), shared, tensor_memory)
    text = compiled.asm["amdgcn"]
    registers = re.findall(r"\.vgpr_count:\s+(\d+)", text)
    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)
    assert registers and spilled, "no register counts in the assembly"
    return Report(max(map(int, registers)), sum(map(int, spilled)), shared, tensor_memory)


def some(variant: Variant, targets: list[str], count: int) -> list[str]:
    """So many of the targets, which ones by a checksum: with a turn for each, all bf16 ones might go to the same."""
    first = crc32(repr((variant.kernel, variant.signature, variant.constants, variant.options)).encode())
    return [targets[(first + i) % len(targets)] for i in range(count)]


def key_of(variant: Variant, target: str) -> str:
    """Of all that the compiler makes a kernel of: 16 hexadecimal digits."""
    *source, options = asked(variant, target)
    # extern_libs has the paths of libraries in the folder that Triton lies in.
    given = {name: value for name, value in options.__dict__.items() if name != "extern_libs"}
    parts = target, ASTSource(variant.kernel, *source).hash(), sorted(given.items())
    return sha256(repr(parts).encode()).hexdigest()[:16]


def read_known() -> dict[str, Report]:
    """The kept reports, by key."""
    if not KEPT.exists():
        return {}
    with open(KEPT, newline="") as file:
        return {line["key"]: Report(*(int(line[field]) for field in Report._fields)) for line in csv.DictReader(file)}


def reports(modules: Sequence[str], targets: list[str], each: int) -> Iterator[tuple[str, str, str, Report, str, str]]:
    """Module, variant, target, report, key and how it came, ``kept``, ``checked`` or ``compiled``; equal ones once.

    Raises:
        ValueError: a kept report is not what compiling gives.
    """
    known = read_known()
    done = set()
    for module in modules:
        found: Mapping[str, Variant] = importlib.import_module(module).VARIANTS
        for name, variant in found.items():
            for target in some(variant, targets, each):
                key = key_of(variant, target)
                if (module, key) in done:
                    continue
                done.add((module, key))
                if key in known and int(key, 16) % AGAIN:
                    yield module, name, target, known[key], key, "kept"
                    continue
                report = compile_for(variant, target)
                if known.get(key, report) != report:
                    raise ValueError(f"{name}, {target}: compiles to {report}; {KEPT.name} has {known[key]} for {key}")
                yield module, name, target, report, key, "checked" if key in known else "compiled"


def update() -> None:
    """Write ``KEPT`` anew: what the tests ask for, and no more."""
    lines = [
        (module, name, target, *report, key)
        for modules, each in (OF_KERNELS, OF_RANKERS)
        for module, name, target, report, key, _ in reports(modules, list(TARGETS), each)
    ]
    with open(KEPT, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *lines])
    print(f"{KEPT}: {len(lines)} kernels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--each", type=int, help="how many of the targets a variant is compiled for; all by default")
    parser.add_argument("--update", action="store_true", help=f"write {KEPT.name}")
    args = parser.parse_args()
    if args.update:
        update()
        raise SystemExit
    print(*COLUMNS, "how", flush=True)
    for module, name, target, report, *rest in reports(args.modules, args.targets, args.each or len(args.targets)):
        print(module, name, target, *report, *rest, flush=True)
