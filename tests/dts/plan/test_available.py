"""What is free, as Linux says it: the machine, and every control group that this process is in."""

import pytest
import torch

from dts.plan import available

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A /proc and a /sys/fs/cgroup: files with what they say."""
    monkeypatch.setattr(available, "PROC", tmp_path / "proc")
    monkeypatch.setattr(available, "GROUPS", tmp_path / "groups")

    def say(file, text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)

    return say


def group(system, place, version, limit, used, pages):
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    most, current, row = names[version]
    system(f"{place}/memory.{most}", f"{limit}\n")
    system(f"{place}/memory.{current}", f"{used}\n")
    system(f"{place}/memory.stat", f"anon 7\n{row} {pages}\n")


def test_nothing_is_known_where_the_system_says_nothing(system):
    assert available.available(CPU) is None and available.available(torch.device("meta")) is None


def test_the_least_of_machine_and_groups(system):
    system("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert available.available(CPU) == 4000 * 1024
    system("proc/self/cgroup", "0::/pod/inner\n")
    assert available.available(CPU) == 4000 * 1024  # no such group
    group(system, "groups/pod/inner", 2, "max", 5, 0)
    assert available.available(CPU) == 4000 * 1024
    group(system, "groups/pod", 2, 3_000_000, 2_000_000, 500_000)  # what holds all of its groups
    assert available.available(CPU) == 1_500_000
    group(system, "groups/pod/inner", 2, 1000, 2000, 0)
    assert available.available(CPU) == 0


def test_groups_of_the_first_version_and_of_a_container(system):
    system("proc/self/cgroup", "5:cpu:/other\n4:memory:/docker/abc\n")
    group(system, "groups/memory", 1, 10_000, 4_000, 1_000)  # its own lies at the root there
    assert available.available(CPU) == 7_000
    group(system, "groups/memory/docker/abc", 1, 6_000, 1_000, 0)
    assert available.available(CPU) == 5_000
