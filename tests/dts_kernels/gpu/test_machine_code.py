"""What the compiler makes of every kernel, for every GPU, without one."""

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from benchmarks.kernels import sass  # noqa: E402

CASES = [(kernel, arch, dtype, levels) for kernel in sass.KERNELS for arch in sass.ARCHITECTURES
         for dtype in ("float16", "bfloat16") for levels in (False, True)]
BUDGET = {"4:1": 3.2, "any four": 5.0}  # lane instructions a code in the main loop


@pytest.mark.parametrize("kernel,arch,dtype,levels", CASES)
def test_no_spills_and_few_instructions(kernel, arch, dtype, levels):
    report = sass.report(kernel, arch, dtype, levels)
    assert report.stack == 0 and report.local == 0
    assert report.shared <= 99 * 1024
    if kernel in ("shrink", "expand"):
        assert 1 < report.instructions_per_code <= BUDGET[report.levels]


@pytest.mark.parametrize("kernel", ["shrink", "expand", "base_expand"])
@pytest.mark.parametrize("ones,split", [({"rows": 1, "entries": 1, "per_entry": 1, "places": 1}, 2),
                                        ({"entries": 1, "places": 1}, 1), ({"per_entry": 1}, 1)])
def test_arguments_that_are_one_become_constants_and_still_compile(kernel, ones, split):
    report = sass.report(kernel, 90, "bfloat16", False, GROUPED=False, ENTRIES=1, SPLIT=split, **ones)
    assert report.stack == 0


def test_dependent_launch_compiles_to_its_instructions():
    for kernel, instruction in (("shrink", "launch_dependents"), ("base_expand", "griddepcontrol.wait")):
        compiled, _, _ = sass.compile_kernel(kernel, 90, "bfloat16", False, PDL=True)
        assert instruction in compiled.asm["ptx"]


def test_decoded_numbers_stay_in_registers():
    """Shared memory holds the words and x, three stages of each, and nothing that was decoded."""
    report = sass.report("shrink", 80, "bfloat16", False)
    assert report.shared == 2 * (8 * 128 * 4 + 16 * 128 * 2)


def test_loops_are_found_and_unrolling_does_not_flatter():
    loop = ["        /*0000*/ FADD R1, R2 ;", ".L_x_1:"]
    body = ["        /*0010*/ HMMA.16816.F32 R0, R4, R2, R0 ;"] * 8 + ["        /*0020*/ LOP3.LUT R1 ;"] * 8
    sass_text = "\n".join([*loop, *body, "        /*0030*/ @P0 BRA `(.L_x_1) ;"])
    assert [len(lines) for lines in sass.loops(sass_text)] == [17]
    once = sass.instructions_per_code(sass_text, 16, 8, 1, 1)
    doubled = "\n".join([*loop, *body, *body, "        /*0030*/ @P0 BRA `(.L_x_1) ;"])
    assert once == pytest.approx(17 * 32 / 1024) and sass.instructions_per_code(doubled, 16, 8, 1, 1) < once
    assert sass.instructions_per_code(doubled, 16, 8, 1, 1) == pytest.approx(33 * 32 / 2048)
