"""What the kernels' machine code is, compiled without a GPU: registers, spills, shared memory, instructions a code.

    python -m benchmarks.kernels.sass [--json] [--kernel shrink] [--arch 90] [--dtype bfloat16]

instructions_per_code counts the packed main loop (lane instructions for every 2-bit code it reads; of sampled_product,
for all the rows that a code is decoded for, at strides from 7 on); null for kernels whose loop is not the packed
product alone.  "+asm" is a kernel with its decode by inline assembly (`Config.asm`).

The machine code is that of the ptxas in Triton's wheel.  The budgets (3.2 for 4:1 codes, 5 for four arbitrary levels)
hold with Triton 3.9; Triton 3.6 gives up to 3.3 (fp16, sm_90) and 6.3.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dts_kernels import sample_table
from dts_kernels.gpu.library_products import NUMBERS
from dts_kernels.gpu.products import ROWS, registers, tile_constants
from dts_kernels.gpu.sample_matrices import DENSE_COLUMNS, ROW_COLUMNS
from dts_kernels.gpu.sample_products import ADDED, LAID_COLUMNS, MOST_ROWS, RUNS, Shape
from dts_kernels.gpu.vectors import BLOCK

ARCHITECTURES = (80, 87, 89, 90, 100, 120)
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
KERNELS = ("shrink", "shrink_together", "expand", "base_expand", "dequantise", "reconstruct", "delta_rows")
PACKED = ("shrink", "shrink_together", "expand")  # whose loop is the packed product alone
AROUND = ("combine_parts", "task_rows", "round_t", "add_product")  # what is done to products and vectors
SAMPLED = ("sampled_product", "sampled_dense", "sampled_rows", "lay", "add_parts")  # without levels
ENCODING = {"sweep_chunk": "sweep"}  # of the encoder, in float32 whatever the dtype; and their files
MODULES = {  # of kernels that are in another one's file
    "combine_parts": "shrink",
    "shrink_together": "shrink",
    "round_t": "dequantise",
    "add_product": "dequantise",
    "delta_rows": "reconstruct",
    "sampled_rows": "sampled_dense",
    "lay": "sampled_product",
    "add_parts": "sampled_product",
}
PLAIN = (*SAMPLED, *ENCODING, *AROUND)  # kernels that know no levels
ASM = "+asm"  # of the name of a kernel that decodes by inline assembly
ALL = (*KERNELS, *AROUND, *SAMPLED, *ENCODING, "shrink" + ASM, "shrink_together" + ASM, "expand" + ASM)
CONFIG = {"BLOCK_T": 16, "BLOCK_N": 128, "SPLIT": 1, "GROUPED": True, "ENTRIES": 16}


@dataclass(frozen=True)
class Report:
    """One compiled kernel.  registers a thread; stack, local and shared in bytes; levels: "4:1" or "any four"."""

    kernel: str
    arch: int
    dtype: str
    levels: str
    registers: int
    stack: int
    local: int
    shared: int
    instructions_per_code: float | None


def signature(kernel: str, dtype: str, levels: bool, **overrides) -> tuple[dict, dict, dict]:
    """(argument types, constants, options) that a launch of `gpu.products` gives a kernel of an LLM's sizes."""
    from dts_kernels.gpu import sweep

    pointer = "*" + DTYPES[dtype]
    t = "*fp32" if overrides.get("SPLIT", 1) > 1 else pointer
    integers = dict.fromkeys(("tasks", "rows", "entries", "per_entry", "places"), "i32")
    operands = {"words": "*i32", "scalars": "*fp32", "table": "*i64", "slots": "*i32"}
    options = {"num_warps": 4, "num_stages": 3}
    constants = CONFIG | {"LEVELS": levels, "ASM": False}
    if kernel == "shrink":
        arguments = {
            "x": pointer,
            **operands,
            "weights": "*fp32",
            "t": t,
            **integers,
            "in_features": "i32",
            "width": "i32",
        }
        constants |= {"PDL": False}
    elif kernel == "shrink_together":
        of_each = {name: kind for name, kind in operands.items() if name != "slots"} | {"tasks": "i32", "width": "i32"}
        arguments = {f"{name}{nth}": kind for name, kind in of_each.items() for nth in ("", "_1", "_2")}
        arguments |= {"x": pointer, "slots": "*i32", "weights": "*fp32", "t": t, **integers, "in_features": "i32"}
        constants |= {"MATRICES": 3}
    elif kernel == "expand":
        arguments = {
            "t": t,
            **operands,
            "y": pointer,
            "out": pointer,
            "adds": "*fp32",
            "weights": "*fp32",
            **integers,
            "width": "i32",
            "out_features": "i32",
            "out_columns": "i32",
            "known": "i32",
        }
        constants |= {"ADD": True, "ADDS": True}
    elif kernel == "base_expand":
        arguments = {
            "x": pointer,
            "weight": pointer,
            "bias": pointer,
            "t": t,
            **operands,
            "out": pointer,
            **integers,
            "width": "i32",
            "in_features": "i32",
            "out_features": "i32",
            "out_columns": "i32",
        }
        constants |= {"BLOCK_N": 32, "BLOCK_K": 128, "BIAS": True, "PDL": False}
        options["num_stages"] = 4
    elif kernel == "combine_parts":
        arguments = {"parts": "*fp32", "t": pointer, "size": "i32"}
        constants = {"PARTS": 4, "BLOCK": 1024}
    elif kernel in ("round_t", "add_product"):
        task = {"scalars": "*fp32", "table": "*i64", "slots": "*i32"}
        if kernel == "round_t":
            arguments = {"t": "*fp32", **task, "weights": "*fp32", "place": "i32", "out": pointer}
            arguments |= {"tasks": "i32", "width": "i32"}
            constants = {"SCALE": True, "BLOCK": NUMBERS}
        else:
            arguments = {"product": "*fp32", **task, "place": "i32", "y": pointer, "out": pointer}
            arguments |= {"tasks": "i32", "size": "i32"}
            constants = {"ADD": True, "BLOCK": NUMBERS}
    elif kernel == "task_rows":
        names = ("tasks", "per_entry", "places", "width", "stride")
        vectors = {"stack": pointer, "slots": "*i32", "weights": "*fp32", "y": pointer, "out": pointer}
        arguments = vectors | dict.fromkeys(names, "i32")
        constants = {"BLOCK": BLOCK, "ADD": True}
    elif kernel == "dequantise":
        arguments = {
            **operands,
            "place": "i32",
            "out": pointer,
            "tasks": "i32",
            "contracted": "i32",
            "columns": "i32",
            "width": "i32",
        }
        constants = {"U": True, "BLOCK_N": 64, "LEVELS": levels}
        options["num_warps"] = 8
    elif kernel == "sweep_chunk":
        tensors = ("old", "factor", "misfit", "gram", "sigma", "step")
        arguments = dict.fromkeys(tensors, "*fp32") | {"ranks": "*i32", "first": "i32", "rank": "i32", "columns": "i32"}
        constants = {"CHUNK": sweep.CHUNK, "BLOCK_M": sweep.BLOCK_M, "SMALL": sweep.SMALL, "LARGE": sweep.LARGE}
        options |= {"num_warps": sweep.WARPS}
    elif kernel in SAMPLED:
        arguments, constants, own = _sampled(kernel, pointer, overrides)
        options |= own
    elif kernel == "delta_rows":
        arguments = {"ids": "*i64", **operands, "weights": "*fp32", "y": pointer, "out": pointer, **integers}
        arguments |= dict.fromkeys(("in_features", "out_features", "out_columns"), "i32")
        constants = {"BLOCK_T": ROWS, "GROUPED": True, "ENTRIES": 16, "LEVELS": levels, "ADD": True}
        constants |= tile_constants(levels, getattr(torch, dtype))
        options |= {"num_warps": 8, "num_stages": 1}
    else:
        arguments = {
            **operands,
            "gamma": "*fp32",
            "base": pointer,
            "out": pointer,
            "tasks": "i32",
            "places": "i32",
            "in_features": "i32",
            "out_features": "i32",
            "out_columns": "i32",
        }
        constants = {"BLOCK_M": 64, "LEVELS": levels, "ADD": True, **tile_constants(levels, getattr(torch, dtype))}
        options |= {"num_warps": 8, "num_stages": 1}
    options |= {k: overrides.pop(k) for k in ("num_warps", "num_stages") if k in overrides}
    if kernel in PACKED:
        options |= registers(getattr(torch, dtype), levels, options["num_warps"])
    return arguments, constants | overrides, options


def _sampled(kernel: str, pointer: str, overrides: dict) -> tuple[dict, dict, dict]:
    """The same of a kernel of sampled elements, as `gpu.sample_products` and `gpu.sample_matrices` launch it."""
    bank = {
        "words": "*i32",
        "table": "*i64",
        "starts": "*i64",
        "scales": "*fp32",
        "slots": "*i32",
        "weights": "*fp32",
    }
    block_t = overrides.get("BLOCK_T", MOST_ROWS)
    lanes = overrides.get("LANES", 8 if block_t < 4 else 4)
    shape = Shape(block_t, lanes, overrides.get("SPLIT", 1), overrides.get("LAID", True))
    laid = "*fp32" if shape.block_t == 1 and shape.laid else pointer
    if kernel == "sampled_product":
        out = pointer if overrides.get("ADD", shape.split == 1) else "*fp32"
        sizes = ("slots_known", "per_entry", "places", "rows", "in_features", "out_features", "room")
        arguments = {"x": pointer, "laid": laid, "y": pointer, "out": out, **bank, **dict.fromkeys(sizes, "i32")}
        constants = {"BLOCK_T": shape.block_t, "RUNS": RUNS, "LANES": shape.lanes, "SPLIT": shape.split}
        constants |= {"LAID": shape.laid, "ADD": shape.split == 1, "FIELDS": sample_table.PLAIN}
        return arguments, constants, shape.options
    if kernel == "lay":
        own = {name: kind for name, kind in bank.items() if name in ("table", "starts", "slots")}
        sizes = ("slots_known", "per_entry", "places", "in_features", "room")
        arguments = {"x": pointer, "laid": laid, **own, **dict.fromkeys(sizes, "i32")}
        constants = {"BLOCK_T": shape.block_t, "BLOCK_N": LAID_COLUMNS, "FIELDS": sample_table.PLAIN}
        return arguments, constants, {}
    if kernel == "add_parts":
        arguments = {"parts": "*fp32", "y": pointer, "out": pointer, "size": "i32"}
        return arguments, {"PARTS": 8, "BLOCK": ADDED}, {}
    sizes = {"slots_known": "i32", "m_size": "i32", "n_size": "i32"}
    constants = {"FIELDS": sample_table.PLAIN}
    if kernel == "sampled_dense":
        arguments = {**bank, "place": "i32", "out": pointer, "factor": "*fp32", **sizes}
        return arguments, constants | {"BLOCK_N": DENSE_COLUMNS}, {}
    rows = {"ids": "*i64", "y": pointer, "out": pointer}
    return {**rows, **bank, "per_entry": "i32", "places": "i32", **sizes}, constants | {"BLOCK_N": ROW_COLUMNS}, {}


def compile_kernel(kernel: str, arch: int, dtype: str, levels: bool, **overrides):
    """(Triton's compiled kernel, its constants and options).  overrides: options, constants, or arguments made constant
    as the launcher makes those that are 1."""
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = (MODULES | ENCODING).get(kernel, kernel)
    function = getattr(importlib.import_module(f"dts_kernels.gpu.{module}"), kernel)
    arguments, constants, options = signature(kernel, dtype, levels, **overrides)
    names = function.arg_names
    types = {name: "constexpr" if name in constants else arguments[name] for name in names}
    # what the launcher knows of an LLM's sizes: pointers and lengths are multiples of 16
    aligned = [
        n
        for n in arguments
        if n not in constants
        and (
            arguments[n][0] == "*"
            or n in ("in_features", "out_features", "out_columns", "contracted", "columns", "room")
            or n.startswith("width")
        )
    ]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import triton

        compiled = triton.compile(
            ASTSource(function, types, constants, attributes), target=GPUTarget("cuda", arch, 32), options=options
        )
    return compiled, constants, options


def shown(cubin: bytes, tool: str, option: str) -> str:
    """What a tool in Triton's wheel says of a cubin: its resource usage, or its machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        done = subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr
    finally:
        os.unlink(file.name)


def loops(sass: str) -> list[list[str]]:
    """The instructions of every loop (a backward branch and what it encloses)."""
    labels, lines, found = {}, [], []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
            if (target := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) and target[1] in labels:
                found.append(lines[labels[target[1]] :])
    return found


def instructions_per_code(sass: str, block_t: int, block_n: int, warps: int, dots: int) -> float:
    """Of the packed main loop: of the loops that enclose no other, the one with the most tensor-core instructions.

    How many blocks of 128 codes an iteration holds follows from those, so unrolling does not flatter it.
    """
    found = loops(sass)  # whose lines have addresses
    inner = [lines for lines in found if not any(set(other) < set(lines) for other in found)]
    body = max(inner, key=lambda lines: sum("HMMA" in line for line in lines))
    products = sum("HMMA" in line for line in body)
    a_block = (block_t // 16) * 8 * max(block_n // 8 // warps, 1) * dots  # m16n8k16 products a warp
    return len(body) * warps * 32 / (128 * block_n * products / a_block)


def instructions_per_sample(sass: str, block_t: int) -> float:
    """Of `sampled_product` for strides from 7 on: the first loop, of four groups of eight rows (one group where a code
    is decoded for more than two rows of x), for all rows that a code is decoded for."""
    body = loops(sass)[0]
    codes = 32 if block_t <= 2 else 8
    # from sm_100 on one instruction multiplies two numbers
    assert sum(1 + ("FFMA2" in line) for line in body if "FFMA" in line) == codes * block_t
    return len(body) / codes


def report(name: str, arch: int, dtype: str, levels: bool, counted: bool = True, **overrides) -> Report:
    """name: one of `ALL`;  counted: False leaves the instructions out, whose listing takes as long as compiling."""
    kernel = name.removesuffix(ASM)
    overrides |= {"ASM": True} if name != kernel else {}
    compiled, constants, options = compile_kernel(kernel, arch, dtype, levels, **overrides)
    cubin = compiled.asm["cubin"]
    usage = shown(cubin, "cuobjdump", "-res-usage")
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage).groups())
    each = None
    if counted and dtype != "float32" and kernel in (*PACKED, "sampled_product"):
        sass, block_t = shown(cubin, "nvdisasm", "-c"), constants["BLOCK_T"]
        if kernel == "sampled_product":
            each = instructions_per_sample(sass, block_t)
        else:
            each = instructions_per_code(sass, block_t, constants["BLOCK_N"], options["num_warps"], 3 if levels else 1)
    return Report(
        name,
        arch,
        dtype,
        "any four" if levels else "4:1",
        registers,
        stack,
        local,
        compiled.metadata.shared,
        None if each is None else round(each, 2),
    )


def cases(kernels=ALL, architectures=ARCHITECTURES, dtypes=("float16", "bfloat16")) -> list[tuple]:
    """Arguments of `report`; assembly decodes the fixed 4:1 codes only, and the encoder has one dtype."""
    return [
        (kernel, arch, dtype, levels)
        for kernel in kernels
        for arch in architectures
        for dtype in (dtypes[:1] if kernel in ENCODING else dtypes)
        for levels in ((False,) if kernel.endswith(ASM) or kernel in PLAIN else (False, True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kernel", choices=ALL, action="append")
    parser.add_argument("--arch", type=int, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    options = parser.parse_args()
    chosen = cases(options.kernel or ALL, options.arch or ARCHITECTURES, options.dtype or ("float16", "bfloat16"))
    rows = [report(*case) for case in chosen]
    if options.json:
        print(json.dumps([asdict(r) for r in rows], indent=1))
        return
    print(f"{'kernel':12} {'arch':6} {'dtype':9} {'levels':9} registers  stack  local  shared  instructions a code")
    for r in rows:
        count = "" if r.instructions_per_code is None else f"{r.instructions_per_code:.2f}"
        print(
            f"{r.kernel:12} sm_{r.arch:<3} {r.dtype:9} {r.levels:9} {r.registers:9} {r.stack:6} {r.local:6} "
            f"{r.shared:7}  {count:>19}"
        )


if __name__ == "__main__":
    main()
