"""Which path made-up devices and shapes take."""

import pytest

from dts_kernels import dispatch
from dts_kernels.dispatch import Problem, choose


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


@pytest.mark.parametrize("op", ["add_sampled_rows", "add_dense_samples"])
def test_rows_and_dense_matrices_of_samples_have_no_kernel(monkeypatch, op):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert choose(problem(op=op, layout="arena")) == "reference"
