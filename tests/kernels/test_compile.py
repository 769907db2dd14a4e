"""Every Triton kernel compiles for every target as it is launched, fits its shared memory and spills no register."""

import os
import subprocess
import sys

import pytest
from compiled import MODULES, OF_KERNELS, SCRIPT, SECONDS, check_compiled, run_aot


@pytest.fixture(scope="module")
def reports() -> list[list[str]]:
    """Of all modules, from one process."""
    return run_aot(*OF_KERNELS)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("module", MODULES)
def test_compiles_without_spills(module: str, reports: list[list[str]]) -> None:
    check_compiled([line for line in reports if line[0] == module], module)


def run(code: str) -> None:
    """Code in a process where kernels are not interpreted."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, str(SCRIPT.parent), *MODULES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_the_list_is_what_triton_is_asked_to_compile() -> None:
    """Triton's own launch, on a driver of each target that compiles nothing, against the list: both to the letter.

    And every ``triton.jit`` function that a program can start is in it.
    """
    run("""
import importlib, sys
sys.path.insert(0, sys.argv[1])
import placerank.kernels, triton_aot
from pathlib import Path
from triton.runtime import driver
from triton.runtime.jit import JITFunction

names = [path.stem for path in Path(placerank.kernels.__file__).parent.glob("*_triton.py")]
functions = [f for name in names for f in vars(importlib.import_module("placerank.kernels." + name)).values()]
kernels = {f for f in functions if isinstance(f, JITFunction) and f.__name__.endswith("_kernel")}
modules = [importlib.import_module(name) for name in sys.argv[2:]]
listed = {variant.kernel for module in modules for variant in module.VARIANTS.values()}
assert kernels == listed, (kernels, listed)

class Driver:
    def __init__(self, target): self.target = target
    def get_current_target(self): return self.target
    def get_current_device(self): return str(self.target)  # a key of Triton's caches
    def get_current_stream(self, device): return 0

compiled = []
def note(kernel, key, signature, device, constants, options, attributes, warmup):
    compiled.append((kernel, signature, constants, attributes, options))
JITFunction._do_compile = note
for module in modules:
    for target, gpu in triton_aot.TARGETS.items():
        driver.set_active(Driver(gpu))
        compiled.clear()
        for launch in module.VARIANTS.cases.values():
            launch()
        assert compiled
        listed = [(v.kernel, *triton_aot.asked(v, target)) for v in module.VARIANTS.values()]
        assert len(compiled) == len(listed)
        for got, want in zip(compiled, listed):
            for a, b in zip(got[:4], want[:4]):
                assert a == b, (target, a, b)
            assert got[4].hash() == want[4].hash(), (target, got[4], want[4])
""")


def test_addresses_and_sizes_ask_for_no_other_kernel() -> None:
    """Tensors that begin anywhere, and numbers of rows that are 1 or odd, against those that divide by 16."""
    run("""
import torch
from placerank.kernels.search_attention_triton import search_attention_triton
from placerank.kernels.target_attention_triton import _both
from placerank.kernels.variants import launches

def search(rows, k, begin):
    shapes = (rows, 4, 74), (rows, 48), (rows, 2)
    tensors = [torch.zeros(begin + torch.Size(s).numel())[begin:].view(s) for s in shapes]
    search_attention_triton(*tensors, torch.zeros(rows, k, dtype=torch.int64))
    _both(torch.float32, 48, 2, (32, 16), visits=rows)

with launches() as even:
    search(160, 16, 0)
with launches() as odd:
    search(1, 15, 1)
assert even and even == odd
""")


def test_a_kept_report_is_of_one_kernel() -> None:
    """What a kernel is compiled of is in its key; where Triton lies is not. The file has what compiling gives."""
    run("""
import sys
sys.path.insert(0, sys.argv[1])
import triton_aot
from triton_aot import TARGETS, compile_for, key_of, read_known, reports
from placerank.kernels.dice_triton import VARIANTS
from placerank.kernels.search_attention_triton import VARIANTS as OTHERS

variant = next(iter(VARIANTS.values()))
constant = next(name for name, value in variant.constants.items() if type(value) is int)
changed = [
    variant._replace(options=variant.options | {"num_warps": 2 * variant.num_warps}),
    variant._replace(constants=variant.constants | {constant: 2 * variant.constants[constant]}),
    variant._replace(attributes={}),
    variant._replace(signature=variant.signature | dict.fromkeys(list(variant.signature)[:1], "*bf16")),
    next(iter(OTHERS.values())),
]
assert variant.attributes and constant
keys = {key_of(v, target) for v in [variant, *changed] for target in TARGETS}
assert len(keys) == len(TARGETS) * 6

known = read_known()
for target in TARGETS:
    key = key_of(variant, target)
    assert not known or known[key] == compile_for(variant, target)
    wrong = {key: known[key]._replace(registers=1) for key in known}
    triton_aot.read_known, triton_aot.AGAIN = lambda: wrong, 1
    try:
        list(reports(["placerank.kernels.dice_triton"], [target], 1))
        assert not known, "a wrong line of the file is told when it is checked"
    except ValueError as error:
        assert "compiles to Report(" in str(error), error
""")


def test_kernels_start_where_their_tensors_are() -> None:
    """The whole list: whenever a kernel starts, PyTorch has been told to take one of its tensors' device."""
    run("""
import importlib, sys
from contextlib import contextmanager
import torch
from triton.runtime.jit import JITFunction

guarded, started = [], set()

@contextmanager
def device_of(x):
    guarded.append(x)
    yield
    guarded.pop()

def note(kernel, *args, **options):
    assert any(x is y for x in guarded[-1:] for y in args), f"{kernel.__name__} starts on the current device"
    started.add(kernel)

torch.cuda.device_of, JITFunction.run = device_of, note
modules = [importlib.import_module(name) for name in sys.argv[2:]]
for module in modules:
    for case in module.VARIANTS.cases.values():
        case()
kernels = {f for module in modules for f in vars(module).values() if isinstance(f, JITFunction)}
kernels = {kernel for kernel in kernels if kernel.__name__.endswith("_kernel")}
assert kernels and kernels == started, kernels ^ started
""")


def test_the_precision_of_products_is_read_however_it_was_set() -> None:
    """PyTorch has two ways to set it, and its older getter raises after the newer one. Each way in a fresh process."""
    run("""
import os
import torch
from placerank.kernels.target_attention_triton import _in_tf32, _precision
from placerank.kernels.variants import launches

matmul = torch.backends.cuda.matmul
ways = {
    "pass": "ieee",
    "matmul.allow_tf32 = True": "tf32",
    "matmul.allow_tf32 = False": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('highest')": "ieee",
    "matmul.fp32_precision = 'tf32'": "tf32",
    "matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "matmul.allow_tf32 = True; matmul.fp32_precision = 'ieee'": "ieee",
}
for way, expected in ways.items():
    child = os.fork()
    if not child:
        exec(way)
        assert _precision() == expected, (way, _precision())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, way
with launches() as started:
    _in_tf32(32, 2, (32, 16))
assert {variant.constants.get("PRECISION", "tf32") for variant in started} == {"tf32"}
assert _precision() == "ieee", "what the list sets for one of its cases it sets back"
""")
