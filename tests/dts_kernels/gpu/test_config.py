"""Block sizes for devices that nobody has here."""

import pytest

from dts_kernels.gpu import config
from dts_kernels.gpu.config import Config, Device

H200, ORIN = Device("NVIDIA H200", 132, (9, 0)), Device("Orin", 16, (8, 7))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DTS_KERNEL_CONFIGS", str(tmp_path))
    config.measured_configs.cache_clear()
    yield
    config.measured_configs.cache_clear()


@pytest.mark.parametrize("device", [H200, ORIN])
@pytest.mark.parametrize("kernel", ["shrink", "expand", "base_expand"])
@pytest.mark.parametrize("rows", [1, 5, 16, 4096])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("columns,contracted", [(128, 128), (1280, 4096), (28672, 8192)])
def test_heuristics_are_launchable(device, kernel, rows, dtype, columns, contracted):
    c = config.heuristic(kernel, device, dtype, columns, contracted, rows)
    assert c.block_t in (16, 32) and c.block_n in (32, 64, 128) and c.warps == 4
    assert 1 <= c.split <= max(1, contracted // 128)
    # every program of the consumer adds up all parts: few rows only
    assert c.split * rows <= 16 or c.split == 1


def test_an_idle_device_splits_the_contraction_and_a_full_one_does_not():
    assert config.heuristic("shrink", H200, "bfloat16", 1280, 4096, 1).split == 8
    assert config.heuristic("shrink", ORIN, "bfloat16", 1280, 4096, 1).split < 8
    assert config.heuristic("shrink", H200, "bfloat16", 1280, 4096, 1, programs=64).split == 1


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
