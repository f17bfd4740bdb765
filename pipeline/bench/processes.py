"""CPU time and memory of a process and its descendants, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(root: int | None = None) -> Iterator[int]:
    """Process ids of a process (default: this one) and its running descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = [root or os.getpid()]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def cpu_seconds() -> float:
    """CPU time that this process and its descendants have used so far."""
    return sum(sum(map(int, fields[11:13])) for pid in tree() if (fields := _stat(pid))) / TICKS_PER_S


def peak_bytes(pid: int | None = None) -> int:
    """Peak memory of a process (default: this one), including shared pages."""
    for line in Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Reset this process's peak to its current memory."""
    Path("/proc/self/clear_refs").write_text("5")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the process state on; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
