"""Block sizes for devices that nobody has here."""

import json
from pathlib import Path

import pytest

from benchmarks.kernels.configs import best, layout, pairs, sweeps, text, width
from dts_kernels.gpu import config
from dts_kernels.gpu.config import Config, Device

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"
H100 = Device("NVIDIA H100 80GB HBM3", 132, (9, 0))
H200, ORIN = Device("NVIDIA H200", 132, (9, 0)), Device("Orin", 16, (8, 7))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DTS_KERNEL_CONFIGS", str(tmp_path))
    config.measured_configs.cache_clear()
    yield
    config.measured_configs.cache_clear()


@pytest.mark.parametrize("device", [H200, ORIN])
@pytest.mark.parametrize("kernel", ["shrink", "expand", "base_expand"])
@pytest.mark.parametrize("rows,blocks", [(1, 1), (5, 1), (16, 1), (4096, 1), (1, 2), (1, 64), (5, 16), (64, 8)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("columns,contracted", [(128, 128), (1280, 4096), (28672, 8192)])
def test_heuristics_are_launchable(device, kernel, rows, blocks, dtype, columns, contracted):
    c = config.heuristic(kernel, device, dtype, columns, contracted, rows, blocks)
    assert c.block_t in (16, 32) and c.block_n in (16, 32, 64, 128) and c.warps in (2, 4)
    assert c.block_n <= 64 * c.warps  # columns of words that a program has threads for
    assert 1 <= c.split <= max(1, contracted // 128)
    # every program of the consumer adds up all parts: of one task's few rows only
    assert c.split == 1 or kernel == "shrink" and rows <= 16 and blocks == 1
    assert (c.asm or c.pdl) <= (device is H200 and dtype == "float16")


def test_an_idle_device_splits_the_contraction_and_a_full_one_does_not():
    assert config.heuristic("shrink", H200, "bfloat16", 1280, 4096, 1).split == 4
    assert config.heuristic("shrink", ORIN, "bfloat16", 1280, 4096, 1).split < 4
    assert config.heuristic("shrink", H200, "bfloat16", 1280, 4096, 1, blocks=64).split == 1


@pytest.mark.parametrize("row", sweeps(), ids=lambda row: "-".join(map(str, row["case"])))
@pytest.mark.parametrize("chosen_by", ["heuristic", "choose"])
def test_few_rows_take_what_a_sweep_on_a_card_found_within_a_tenth_of_the_best(row, chosen_by):
    """Each (kernel, parts) of a row has the best of 22 to 88 configs: microseconds and [block_n, warps, stages, split].
    A choice that is none of these has no time here, and fails."""
    m, n = row["case"][:2]
    choose = getattr(config, chosen_by)
    shrink = choose("shrink", H100, "bfloat16", width(row), n, *layout(row))
    expand = choose("expand", H100, "bfloat16", m, width(row), *layout(row), shrink.split)
    times, parts = [], str(shrink.split)
    for chosen, found, split in ((shrink, row["shrink_by_split"], shrink.split), (expand, row["expand_by_split"], 1)):
        time, best = found[parts]
        assert [chosen.block_n, chosen.warps, chosen.stages, split] == best and chosen.asm
        times.append(time)
    assert sum(times) <= 1.1 * min(pairs(row).values())
    whole = choose("expand", H100, "bfloat16", m, width(row), *layout(row))
    assert [whole.block_n, whole.warps, whole.stages, 1] == row["expand_by_split"]["1"][1] and whole.asm


def test_the_shipped_configs_are_those_of_the_sweeps():
    path = config.SHIPPED / config.file_name(H100.name)
    assert path.read_text("utf-8") == text(H100.name)
    assert set(config.measured_configs(H100.name)) == {key for row in sweeps() for key in best(row)}


def test_the_fused_kernel_is_taken_where_a_card_has_shown_it_to_be_faster():
    """Times the base: fused with dependent launch and assembly, and the library's product with shrink beside it."""
    lines = (RESULTS / "first-run.jsonl").read_text("utf-8").splitlines()
    fused = {key(row): row for row in map(json.loads, lines) if row["what"] == "layer"}
    compared = 0
    for row in sweeps():
        m, n, _, rows, work = row["case"]
        layer = fused.get((m, n, row["k"], rows, work))
        if layer is None:
            continue
        faster = layer["base_expand asm+pdl"] < row["ratio_side_stream"]
        assert config.fused(H100, "bfloat16", *layout(row), width(row)) == faster, row["case"]
        compared += 1
    assert compared >= 6
    assert not config.fused(ORIN, "bfloat16", 16, 1, 1228) and not config.fused(H100, "float32", 16, 1, 1228)


def key(row: dict) -> tuple:
    return row["m"], row["n"], row["k"], row["rows"], row["work"]


def test_rows_fall_into_few_buckets():
    assert [config.bucket(r) for r in (1, 2, 4, 5, 16, 17, 64, 5000)] == [1, 4, 4, 16, 16, 64, 64, 64]


def test_a_measured_config_wins_and_other_sizes_keep_the_heuristic():
    best = Config(block_n=32, split=5)
    path = config.save(H200.name, {config.key("shrink", "bfloat16", 1280, 4096, 3): best})
    assert path.name == "nvidia-h200.json"
    assert config.choose("shrink", H200, "bfloat16", 1280, 4096, 4) == best
    assert config.choose("shrink", H200, "bfloat16", 1280, 4096, 5) != best
    assert config.choose("shrink", ORIN, "bfloat16", 1280, 4096, 4) != best
    config.save(H200.name, {"expand|float16|1|1|1": Config()})
    assert config.choose("shrink", H200, "bfloat16", 1280, 4096, 4) == best
