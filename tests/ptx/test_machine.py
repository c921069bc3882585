"""The machine that runs PTX: arithmetic, divergence, memory checks and counts, on kernels written for it."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simt import harness, program

pytestmark = pytest.mark.skipif(program.compiler() is None, reason="needs g++ on x86-64")

HEAD = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 hiermt_shared[];
.visible .entry test(
\t.param .u64 test_param_0,
\t.param .u64 test_param_1
)
.maxntid 64, 1, 1
{
\t.reg .pred %p<8>;
\t.reg .b16 %rs<8>;
\t.reg .b32 %r<32>;
\t.reg .f32 %f<16>;
\t.reg .b64 %rd<16>;
\t.reg .f64 %fd<8>;
\tld.param.u64 %rd1, [test_param_0];
\tld.param.u64 %rd2, [test_param_1];
\tcvta.to.global.u64 %rd3, %rd1;
\tcvta.to.global.u64 %rd4, %rd2;
\tmov.u32 %r1, %tid.x;
\tmul.wide.u32 %rd5, %r1, 4;
\tadd.s64 %rd6, %rd3, %rd5;
\tadd.s64 %rd7, %rd4, %rd5;
\tld.global.u32 %r2, [%rd6];
\tmov.b32 %f1, %r2;
"""
# What a body computes is in %r3.
TAIL = "\tst.global.u32 [%rd7], %r3;\n\tret;\n}\n"


class Fault(RuntimeError):
    """The machine ended the process."""


def run(
    body: str, given: Tensor, folder: Path, threads: int = 32, shared: int = 0, size: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Output of a body and its counts; an output has as many elements as the input, or `size`."""
    path, counts = folder / "kernel.ptx", folder / "counts"
    path.write_text(HEAD + body + TAIL)
    out = torch.full((size or given.numel(),), -1, dtype=torch.int32)
    message = b"".join(struct.pack("<q", t.numel() * t.element_size()) + t.numpy().tobytes() for t in (given, out))
    counts.unlink(missing_ok=True)
    result = subprocess.run(
        [str(program.build(program.PTX_TOOL)), str(path), "1", str(threads), str(shared)],
        input=message,
        capture_output=True,
        env={**os.environ, **harness.ENVIRONMENT, "HIERMT_SIMT_COUNTS": str(counts)},
        check=False,
    )
    if result.returncode != 0:
        raise Fault(result.stderr.decode(errors="replace"))
    reply = torch.frombuffer(bytearray(result.stdout[-out.numel() * 4 :]), dtype=given.dtype)
    return reply, json.loads(counts.read_text())


INTEGERS = torch.tensor([0, 1, -1, 2, 7, -7, 31, 32, 33, 255, -256, 65535, 2**31 - 1, -(2**31), 123456789, -98765] * 2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %r3, %r2, 2147483647;", lambda x: x + 2**31 - 1),
        ("mul.lo.s32 %r3, %r2, -3;", lambda x: -3 * x),
        ("mad.lo.s32 %r3, %r2, 5, %r1;", lambda x: 5 * x + torch.arange(32)),
        ("mul.hi.s32 %r3, %r2, 1431655766;", lambda x: (x * 1431655766) >> 32),
        ("div.s32 %r3, %r2, 7;", lambda x: torch.div(x, 7, rounding_mode="trunc")),
        ("rem.s32 %r3, %r2, -7;", lambda x: torch.fmod(x, 7)),
        ("shr.s32 %r3, %r2, 3;", lambda x: x >> 3),
        ("shr.u32 %r3, %r2, 3;", lambda x: (x & 0xFFFFFFFF) >> 3),
        ("shl.b32 %r3, %r2, 33;", torch.zeros_like),
        ("max.s32 %r3, %r2, 5;", lambda x: x.clamp(min=5)),
        ("setp.lt.u32 %p1, %r2, 100; selp.b32 %r3, 1, 2, %p1;", lambda x: 2 - ((x >= 0) & (x < 100)).long()),
        ("cvt.s64.s32 %rd8, %r2; shr.s64 %rd9, %rd8, 1; cvt.u32.u64 %r3, %rd9;", lambda x: x >> 1),
        ("not.b32 %r3, %r2;", lambda x: ~x),
        ("mul.wide.s32 %rd8, %r2, %r2; shr.u64 %rd9, %rd8, 20; cvt.u32.u64 %r3, %rd9;", lambda x: (x * x) >> 20),
    ],
)
def test_integers(body: str, expected, tmp_path: Path) -> None:
    found, _ = run(body, INTEGERS.int(), tmp_path)
    assert torch.equal(found, (expected(INTEGERS) & 0xFFFFFFFF).to(torch.int64).where(torch.tensor(True), 0).int())


FLOATS = torch.tensor([0.0, -0.0, 1.5, -2.5, 3.3, 1e-30, 1e30, math.inf, -math.inf, math.nan, 0.1, 88.5, -88.5, 7.0])
FLOATS = torch.cat([FLOATS, torch.linspace(-3, 3, 18)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("fma.rn.f32 %f2, %f1, %f1, 0fBF800000;", lambda x: (x.double() * x.double() - 1).float()),
        ("add.f32 %f2, %f1, 0f3F800000;", lambda x: x + 1),
        ("neg.f32 %f2, %f1;", lambda x: -x),
        ("max.f32 %f2, %f1, 0f00000000;", lambda x: torch.fmax(x, torch.zeros(()))),
        ("cvt.rni.f32.f32 %f2, %f1;", torch.round),
        ("cvt.sat.f32.f32 %f2, %f1;", lambda x: x.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)),
        (
            "cvt.f64.f32 %fd1, %f1; mul.f64 %fd2, %fd1, %fd1; cvt.rn.f32.f64 %f2, %fd2;",
            lambda x: (x.double() ** 2).float(),
        ),
        ("cvt.rn.bf16.f32 %rs1, %f1; mov.b32 %r5, {0, %rs1}; mov.b32 %f2, %r5;", lambda x: x.bfloat16().float()),
        ("cvt.rn.f16.f32 %rs1, %f1; cvt.f32.f16 %f2, %rs1;", lambda x: x.half().float()),
        (
            "setp.ltu.f32 %p1, %f1, 0f00000000; selp.f32 %f2, 0f3F800000, 0f40000000, %p1;",
            lambda x: 2 - ((x < 0) | x.isnan()).float(),
        ),
        ("ex2.approx.ftz.f32 %f2, %f1;", torch.exp2),
        ("rcp.approx.ftz.f32 %f2, %f1;", torch.reciprocal),
    ],
)
def test_floats(body: str, expected, tmp_path: Path) -> None:
    found, _ = run(body + " mov.b32 %r3, %f2;", FLOATS, tmp_path)
    torch.testing.assert_close(found, expected(FLOATS), rtol=2e-7, atol=0, equal_nan=True)


def test_rounding_down(tmp_path: Path) -> None:
    found, _ = run("fma.rm.f32 %f2, %f1, %f1, 0f33800000; mov.b32 %r3, %f2;", FLOATS, tmp_path)
    exact = FLOATS.double() ** 2 + 2.0**-24
    finite = exact.isfinite() & (exact < 3e38)
    below = found.double()
    assert (below <= exact)[finite].all()
    assert (torch.nextafter(found, torch.tensor(math.inf)).double() > exact)[finite].all()


LOOP = """
\tmov.u32 %r3, 0;
\tmov.u32 %r4, 0;
$L_head:
\tsetp.ge.u32 %p1, %r4, %r2;
\t@%p1 bra $L_done;
\tadd.s32 %r3, %r3, %r4;
\tadd.s32 %r4, %r4, 1;
\tbra.uni $L_head;
$L_done:
\tshfl.sync.bfly.b32 %r5|%p2, %r3, 0, 31, -1;
"""


def test_lanes_of_a_loop_meet_again(tmp_path: Path) -> None:
    """Lanes that leave the loop early wait, so that a shuffle of all follows; the loop costs its longest lane."""
    trips = torch.arange(32).flip(0) % 9
    found, counts = run(LOOP, trips.int(), tmp_path)
    assert torch.equal(found.long(), trips * (trips - 1) // 2)
    # Per round setp, bra, 2 add and bra; a last setp and bra; the ret.
    assert counts["branch"] == 8 * 2 + 1 + 1
    assert counts["integer"] - run(LOOP, torch.zeros(32).int(), tmp_path)[1]["integer"] == 8 * 3
    assert counts["shuffle"] == 1


def test_both_sides_of_a_branch_cost(tmp_path: Path) -> None:
    body = """
    setp.lt.u32 %p1, %r2, 16;
    @%p1 bra $L_low;
    add.s32 %r3, %r2, 100;
    add.s32 %r3, %r3, 100;
    bra.uni $L_end;
$L_low:
    sub.s32 %r3, %r2, 1;
$L_end:
"""
    lanes = torch.arange(32).int()
    found, parted = run(body, lanes, tmp_path)
    assert torch.equal(found, torch.where(lanes < 16, lanes - 1, lanes + 200))
    low, high = (run(body, torch.full((32,), value).int(), tmp_path)[1]["integer"] for value in (0, 99))
    assert parted["integer"] == low + high - (low - 1) and high == low + 1


@pytest.mark.parametrize(
    ("body", "shared", "what"),
    [
        ("mov.u32 %r4, 2; ld.shared.u32 %r3, [%r4];", 64, "alignment"),
        ("shl.b32 %r4, %r1, 2; st.shared.u32 [%r4], %r2; mov.u32 %r3, 0;", 124, "shared memory"),
        ("add.s64 %rd8, %rd6, 4; ld.global.u32 %r3, [%rd8];", 0, "global memory"),
        ("st.global.u32 [0], %r2; mov.u32 %r3, 0;", 0, "unknown address|global memory"),
        (
            "setp.lt.u32 %p1, %r1, 3; @%p1 bra $L_b; bra.uni $L_e; $L_b: bar.sync 0; $L_e: mov.u32 %r3, 0;",
            0,
            "divergence",
        ),
        ("setp.lt.u32 %p1, %r1, 3; @%p1 ret; bar.sync 0; mov.u32 %r3, 0;", 0, "divergence"),
        ("setp.lt.u32 %p1, %r1, 3; @%p1 ret; shfl.sync.bfly.b32 %r3|%p2, %r2, 1, 31, -1;", 0, "divergence"),
        ("fused.multiply.f32 %f2, %f1, %f1, %f1; mov.u32 %r3, 0;", 0, "unknown instruction: fused.multiply.f32"),
        ("add.cc.s32 %r3, %r2, %r2;", 0, "unknown instruction: add.cc.s32"),
        ("ld.global.L2::cache_hint.u32 %r3, [%rd6];", 0, "unknown instruction"),
        ("add.s64 %r3, %r2, %r2;", 0, "%r3 is not a s64"),
        (".reg .b128 %q; mov.u32 %r3, 0;", 0, "registers of type .b128"),
    ],
)
def test_faults_end_the_process(body: str, shared: int, what: str, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=what):
        run(body, torch.arange(32).int(), tmp_path, shared=shared)


def test_more_threads_than_the_kernel_allows(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="96 threads a block, the kernel allows 64"):
        run("mov.u32 %r3, 0;", torch.arange(96).int(), tmp_path, threads=96)


@pytest.mark.parametrize(
    ("words", "stride", "wavefronts"),
    [
        (1, 1, 1),
        (1, 2, 2),
        (1, 32, 32),
        (1, 33, 1),
        (1, 0, 1),
        (2, 2, 2),
        (4, 4, 4),
        (4, 0, 1),
        (4, 20, 4),
        (4, 32, 32),
    ],
)
def test_wavefronts(words: int, stride: int, wavefronts: int, tmp_path: Path) -> None:
    """A lane reads so many words at `stride` words from the next lane's."""
    names = ["%r10", "%r11", "%r12", "%r13"][:words]
    vector = "" if words == 1 else f".v{words}"
    operand = names[0] if words == 1 else "{" + ", ".join(names) + "}"
    body = f"mul.lo.s32 %r4, %r1, {4 * stride}; ld.shared{vector}.u32 {operand}, [%r4]; mov.u32 %r3, 0;"
    _, counts = run(body, torch.arange(32).int(), tmp_path, shared=8192)
    assert counts["wavefronts"] == wavefronts
    assert counts["load_shared"] == 1


def test_gathers_are_the_loads_whose_addresses_come_from_global_memory(tmp_path: Path) -> None:
    """Two loads of 16 bytes: at an index that is read, and at the lane's, which is not of a neighbour."""
    load = "mul.lo.s32 %r{0}, {1}, 64; ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r{0}];"
    body = f"add.s32 %r4, %r2, 0; {load.format(5, '%r4')} {load.format(6, '%r1')} mov.u32 %r3, 0;"
    # Eight nodes at a time meet in two groups of four banks; the same node is read once.
    for given, wavefronts in ((torch.arange(32).flip(0), 16), (torch.zeros(32), 1), (torch.arange(32) // 8, 4)):
        _, counts = run(body, given.int(), tmp_path, shared=2048)
        assert (counts["gathers"], counts["gather_wavefronts"]) == (1, wavefronts)
        assert counts["wavefronts"] == wavefronts + 16


def test_sectors(tmp_path: Path) -> None:
    body = "shl.b64 %rd8, %rd5, 3; add.s64 %rd9, %rd3, %rd8; ld.global.u32 %r3, [%rd9];"
    _, counts = run(body, torch.zeros(32 * 8).int(), tmp_path)
    assert counts["load_global"] == 2 and counts["store_global"] == 1
    # 32 words side by side are 4 or, unaligned, 5 sectors.
    assert counts["sectors"] - 32 in (8, 9, 10)


def test_matrix_product(tmp_path: Path) -> None:
    """One tile of 16 x 8 by 8 x 8, each element from its lane; the values are exact in TF32."""
    lanes = torch.arange(32)
    scaled = "mul.lo.s32 %r4, %r1, {}; and.b32 %r4, %r4, 31; cvt.rn.f32.s32 %f2, %r4; mov.b32 %r{}, %f2;"
    body = [scaled.format(2 * k + 3, 10 + k) for k in range(6)]
    body += [f"mov.f32 %f{4 + k}, 0f3F800000;" for k in range(4)]
    body.append(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f4, %f5, %f6, %f7}, {%r10, %r11, %r12, %r13}, "
        "{%r14, %r15}, {%f4, %f5, %f6, %f7};"
    )
    value = [(lanes * (2 * k + 3) & 31).float() for k in range(6)]
    a, b = torch.zeros(16, 8), torch.zeros(8, 8)
    group, member = lanes // 4, lanes % 4
    for k in range(4):
        a[group + 8 * (k % 2), member + 4 * (k // 2)] = value[k]
    for k in range(2):
        b[member + 4 * k, group] = value[4 + k]
    product = a @ b + 1
    for k in range(4):
        found, _ = run(" ".join(body) + f" mov.b32 %r3, %f{4 + k};", torch.zeros(32), tmp_path)
        assert torch.equal(found, product[group + 8 * (k // 2), 2 * member + k % 2])
