"""Which path made-up devices and shapes take."""

import pytest

from dts_kernels import dispatch
from dts_kernels.dispatch import Problem, choose
from dts_kernels.gpu.sample_products import LARGEST_LAID, Shape, product_shape, room_of
from dts_kernels.sample_words import RUN


def problem(**changes):
    return Problem(
        **{
            "op": "delta_linear",
            "device": "cuda",
            "dtype": "bfloat16",
            "rows": 16,
            "layout": "planar",
        }
        | changes
    )


@pytest.mark.parametrize(
    "changes,path",
    [
        ({}, "triton"),
        ({"op": "linear"}, "triton"),
        ({"layout": "planar_levels"}, "triton_levels"),
        ({"op": "reconstruct", "layout": "planar_levels"}, "triton_levels"),
        ({"rows": 255}, "triton"),
        ({"rows": 256}, "dequantise"),
        ({"rows": 4096, "entries": 64}, "triton"),
        ({"rows": 4096, "layout": "planar_levels"}, "triton_levels"),
        ({"rows": 4096, "layout": "planar_levels", "dtype": "float32"}, "dequantise_levels"),
        ({"transposed": True}, "dequantise"),
        ({"device": "interpreter"}, "triton"),
        ({"device": "cpu"}, "reference"),
        ({"dtype": "float64"}, "reference"),
        ({"rows": 0}, "reference"),
        ({"empty": True}, "reference"),
        ({"op": "delta_embedding"}, "reference"),
    ],
)
def test_path(changes, path):
    assert choose(problem(**changes)) == path


@pytest.mark.parametrize(
    "changes,path",
    [
        ({}, "triton"),
        ({"rows": 63}, "triton"),
        ({"rows": 64}, "dense"),
        ({"rows": 640, "entries": 10}, "triton"),
        ({"transposed": True}, "dense"),
        ({"dtype": "float64"}, "reference"),
        ({"rows": 0}, "reference"),
        ({"device": "mps"}, "reference"),
    ],
)
def test_sampled_products_take_their_paths(monkeypatch, changes, path):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose(problem(**{"op": "add_samples", "layout": "arena"} | changes)) == path


def test_sampled_products_without_triton_run_as_pytorch(monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert choose(problem(op="add_samples", layout="arena")) == "reference"


@pytest.mark.parametrize("op,path", [("add_sampled_rows", "triton"), ("add_dense_samples", "reference")])
def test_rows_of_samples_have_a_kernel_and_dense_matrices_have_none(monkeypatch, op, path):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert choose(problem(op=op, layout="arena")) == path


@pytest.mark.parametrize(
    "entries,per_entry,shape",
    [
        (1, 1, (1, 8, 8, False)),  # 16 programs of 256 outputs, 128 with their parts
        (3, 1, (1, 8, 2, False)),
        (4, 1, (1, 8, 2, True)),
        (16, 1, (1, 8, 1, True)),
        (1, 3, (4, 4, 8, True)),
        (1, 16, (8, 4, 4, True)),
    ],
)
def test_sampled_products_fill_the_processors_in_as_few_parts_as_do(entries, per_entry, shape):
    assert product_shape(132, 4096, 4096, entries, per_entry) == Shape(*shape)


def test_there_is_room_for_every_stride_that_is_laid_out():
    for n in (1, 5, 100, 2049, 4096):
        for stride in range(1, LARGEST_LAID + 1):
            pitch = stride + (RUN - 1 if stride >= 7 else 0)
            assert -(-n // stride // 4) * 4 * pitch <= room_of(n)


def test_the_constants_of_kernels_and_launches_are_one():
    samples = pytest.importorskip("dts_kernels.gpu.samples")
    assert (samples.RUN.value, samples.LARGEST_LAID.value) == (RUN, LARGEST_LAID)
