"""Which path made-up devices and shapes take."""

import json
from pathlib import Path

import pytest

from dts_kernels import dispatch
from dts_kernels.dispatch import Problem, choose
from dts_kernels.gpu import rules, sample_products
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
            "out_features": 4096,
            "in_features": 4096,
            "rank": 1280,
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
        ({"rows": 128}, "triton"),
        ({"rows": 512}, "dequantise"),
        ({"rows": 512, "rank": 256}, "triton"),
        ({"rows": 4096, "rank": 256}, "dequantise"),
        ({"rows": 4096, "rank": 128, "out_features": 768, "in_features": 768}, "triton"),
        ({"rows": 255, "dtype": "float32"}, "triton"),
        ({"rows": 256, "dtype": "float32"}, "dequantise"),
        ({"rows": 4096, "entries": 64}, "triton"),
        ({"rows": 4096, "layout": "planar_levels"}, "triton_levels"),
        ({"rows": 4096, "layout": "planar_levels", "dtype": "float32"}, "dequantise_levels"),
        ({"transposed": True}, "dequantise"),
        ({"device": "interpreter"}, "triton"),
        ({"device": "cpu"}, "reference"),
        ({"dtype": "float64"}, "reference"),
        ({"rows": 0}, "reference"),
        ({"empty": True}, "reference"),
        ({"op": "delta_embedding"}, "triton"),
        ({"op": "add_embedding"}, "triton"),
        ({"op": "delta_embedding", "layout": "planar_levels"}, "triton_levels"),
    ],
)
def test_path(changes, path):
    assert choose(problem(**changes)) == path


ROWS = Path(__file__).parents[3] / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"


def measured() -> tuple[dict, dict]:
    """(m, n, rank, rows) of one task -> (the base's microseconds, those of the delta beside it), by the packed kernels
    and by library products with dequantised factors."""
    packed, dequantised = {}, {}
    for name in ("first-run.jsonl", "sweeps.jsonl"):
        for row in map(json.loads, (ROWS / name).read_text("utf-8").splitlines()):
            base = row.get("base_us")
            if row["what"] == "layer" and row["work"] == "one" and row["rows"] > 16:
                key, found, ratio = (row["m"], row["n"], row["k"], row["rows"]), packed, row["cublas+shrink+expand"]
            elif row["what"] == "prefill":
                rank = int(row["r"] * min(row["m"], row["n"]))
                key, found, ratio = (row["m"], row["n"], rank, row["rows"]), dequantised, row[PIECES]
            elif "shrink_by_split" in row and row["case"][4] == "one":
                m, n, _, rows, _ = row["case"]
                key, found, ratio = (m, n, row["k"], rows), packed, row["ratio_seq"]
            else:
                continue
            found[key] = base, (ratio - 1) * base
    return packed, dequantised


PIECES = "full dequantise path pieces"
PACKED, DEQUANTISED = measured()


@pytest.mark.parametrize("case", [*PACKED], ids=str)
def test_the_model_of_the_packed_kernels_is_what_a_card_took(case):
    base, delta = PACKED[case]
    assert abs(rules.packed_microseconds(*case) - delta) <= 0.12 * (base + delta)


@pytest.mark.parametrize("case", [*DEQUANTISED], ids=str)
def test_the_model_of_library_products_is_what_a_card_took(case):
    base, delta = DEQUANTISED[case]
    assert abs(rules.dequantised_microseconds(*case) - delta) <= 0.12 * (base + delta)


def test_what_is_chosen_took_at_most_a_tenth_longer_than_the_better_one():
    both = PACKED.keys() & DEQUANTISED.keys()
    assert len(both) == 3
    for case in both:
        m, n, rank, rows = case
        path = choose(problem(op="linear", out_features=m, in_features=n, rank=rank, rows=rows))
        totals = {"triton": sum(PACKED[case]), "dequantise": sum(DEQUANTISED[case])}
        assert totals[path] <= 1.1 * min(totals.values()), (case, totals)


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


@pytest.mark.parametrize(
    "m,n,entries,per_entry,pays",
    [
        (4096, 4096, 1, 1, True),  # in parts anyway
        (768, 768, 16, 1, False),  # a base of 1.2 MB takes less than a launch
        (4096, 4096, 16, 1, True),
        (14336, 4096, 64, 1, True),
        (4096, 64, 512, 1, False),  # the parts are more bytes than the base
        (4096, 4096, 1, 63, True),
    ],
)
def test_a_sample_runs_beside_the_base_where_that_hides_more_than_a_launch_costs(m, n, entries, per_entry, pays):
    shape = sample_products.product_shape(132, m, n, entries, per_entry)
    assert sample_products.beside_pays(shape, m, n, entries * per_entry, 2) is pays


def test_parts_that_there_are_anyway_always_run_beside_the_base():
    shape = sample_products.Shape(1, 8, 2, False)
    assert sample_products.beside_pays(shape, 64, 1024, 1, 2)
    assert not sample_products.beside_pays(sample_products.Shape(1, 8, 1, False), 64, 1024, 1, 2)
