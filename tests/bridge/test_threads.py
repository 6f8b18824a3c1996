"""Thread counts that respect containers."""

from __future__ import annotations

import os

import pytest

from bridge import threads


@pytest.fixture
def cgroup(tmp_path):
    def make(files, group="0::/pod/box"):
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "self").write_text(group + "\n")
        return threads.cgroup_cpus(tmp_path / "fs", tmp_path / "self")

    return make


@pytest.mark.parametrize(
    ("files", "group", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"pod/box/cpu.max": "max 100000", "pod/cpu.max": "50000 100000"}, "0::/pod/box", 0.5),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({}, "0::/", None),
    ],
)
def test_the_tightest_quota_holds(cgroup, files, group, cpus):
    assert cgroup(files, group) == cpus


def test_quota_affinity_and_environment_bound_the_default(monkeypatch):
    monkeypatch.setattr(threads, "_allowed_cpus", lambda: set(range(16)))
    monkeypatch.setattr(threads, "_cores", len)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.default_threads() == 16
    assert not threads.quota_is_tight()
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: 2.5)
    assert threads.default_threads() == 3
    assert threads.quota_is_tight()
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert threads.default_threads() == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux knows affinities")
def test_hyperthreads_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_CPU_TOPOLOGY", tmp_path)
    for cpu in range(4):
        path = tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert threads._cores({0, 1, 2, 3}) == 2
    assert threads._cores({0, 7}) == 2
