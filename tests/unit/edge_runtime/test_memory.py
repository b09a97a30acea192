"""Memory limits are read from planted /proc and /sys trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpq.edge_runtime import memory

MIB = 1024 * 1024


def plant(root: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/meminfo": "MemTotal:  1048576 kB\nMemFree:  1 kB\nMemAvailable:  524288 kB\nHugePages_Total: 0\n",
        "proc/self/status": "Name:\tx\nVmHWM:\t  30720 kB\nVmRSS:\t  20480 kB\nVmSize: 30000 kB\n",
        "proc/self/cgroup": "0::/a/b\n",
    }
    for name, text in {**base, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_available_memory_counts(tmp_path: Path) -> None:
    found = memory.measure(root=plant(tmp_path, {}))
    assert found.ram == 1024 * MIB
    assert found.source == "available"
    assert found.budget == 512 * MIB - 32 * MIB
    assert found.cgroup is None


def test_the_tightest_cgroup_v2_ancestor_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": f"{100 * MIB}\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
    found = memory.measure(root=plant(tmp_path, files))
    assert (found.source, found.cgroup) == ("cgroup-v2", 100 * MIB)
    assert found.budget == 100 * MIB - 20 * MIB - 100 * MIB // 16


@pytest.mark.parametrize(("outer", "inner"), [(80, 120), (120, 80)])
def test_the_smaller_of_two_nested_limits_counts(tmp_path: Path, outer: int, inner: int) -> None:
    files = {"sys/fs/cgroup/a/memory.max": f"{outer * MIB}\n", "sys/fs/cgroup/a/b/memory.max": f"{inner * MIB}\n"}
    assert memory.cgroup_limit(plant(tmp_path, files)) == (80 * MIB, "cgroup-v2")


def test_cgroup_v1_without_a_limit_is_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:memory:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = memory.measure(root=plant(tmp_path, files))
    assert (found.cgroup, found.source) == (None, "available")


def test_cgroup_v1_and_its_unlimited_value(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu:/x\n3:memory:/job\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{64 * MIB}\n",
    }
    found = memory.measure(root=plant(tmp_path, files))
    assert (found.source, found.cgroup) == ("cgroup-v1", 64 * MIB)
    assert found.budget == (64 - 20 - 4) * MIB


def test_a_path_outside_our_view_counts_as_the_mount(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/memory.max": f"{50 * MIB}\n"}
    assert memory.cgroup_limit(plant(tmp_path, files)) == (50 * MIB, "cgroup-v2")


def test_a_limit_below_what_is_used_leaves_nothing(tmp_path: Path) -> None:
    found = memory.measure(root=plant(tmp_path, {"sys/fs/cgroup/memory.max": f"{10 * MIB}\n"}))
    assert found.budget == 0


def test_the_users_limit_is_the_budget(tmp_path: Path) -> None:
    found = memory.measure(123456, root=plant(tmp_path, {}))
    assert (found.budget, found.source) == (123456, "option")


def test_an_address_space_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (200 * MIB, 200 * MIB))
    found = memory.measure(root=plant(tmp_path, {}))
    assert found.source == "address-space"
    assert found.budget == 200 * MIB - 30000 * 1024 - 200 * MIB // 16


def test_a_system_without_proc_gives_zeros(tmp_path: Path) -> None:
    found = memory.measure(root=tmp_path)
    assert (found.ram, found.budget, found.cgroup) == (0, 0, None)


def test_this_system_has_memory() -> None:
    found = memory.measure()
    assert found.ram > found.budget > 0
    assert memory.status("VmHWM") >= memory.status("VmRSS") > 0
