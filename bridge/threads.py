"""How many threads to use here: affinity, cgroup quotas and OMP_NUM_THREADS count."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["cgroup_cpus", "default_threads", "quota_is_tight"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")


def cgroup_cpus(root: Path = _CGROUP_ROOT, of_process: Path = _CGROUP_OF_PROCESS) -> float | None:
    """The CPU time per wall time that cgroups grant this process, None without a limit.

    The tightest quota on the way from the process's own group to the root holds.
    """
    quotas = [
        quota
        for folder in _group_folders(root, of_process)
        if (quota := _quota_v2(folder) or _quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _group_folders(root: Path, of_process: Path) -> list[Path]:
    folders = {root, root / "cpu", root / "cpu,cpuacct"}
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        parts = [p for p in path.split("/") if p and p != ".."]
        folders.update(base.joinpath(*parts[:count]) for count in range(len(parts) + 1))
    return sorted(folders)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cores(cpus: set[int]) -> int:
    """Physical cores among ``cpus``: two hyperthreads share the units that kernels keep busy."""
    cores = set()
    for cpu in cpus:
        siblings = _CPU_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def default_threads() -> int:
    """Threads that one session should use: the cores that this process may really use."""
    counts: list[float] = [_cores(_allowed_cpus())]
    quota = cgroup_cpus()
    if quota is not None:
        counts.append(math.ceil(quota))
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit():
        counts.append(int(wanted))
    return max(1, int(min(counts)))


def quota_is_tight() -> bool:
    """Whether a quota grants less than the CPUs that are visible, so that spinning costs work."""
    quota = cgroup_cpus()
    return quota is not None and quota < len(_allowed_cpus())
