"""The machine that measured, in words a reader can compare with his own."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

from bench.contestants import REPOSITORY

_SYNCS = 100


def describe_machine(data_dir: Path) -> dict[str, str]:
    """name -> text. data_dir: where the database lies; a file is written there for a moment."""
    memory_kb = int(_read_field("/proc/meminfo", "MemTotal").split()[0])
    return {
        "processor": f"{_read_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores visible",
        "memory": f"{memory_kb / 2**20:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "disk": f"{_find_filesystem(data_dir)}, {_measure_sync_ms(data_dir):.2f} ms for a write of 8 KiB with fdatasync (median)",
        "Python": platform.python_version(),
        "listingd": _find_commit(),
    }


def _read_field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _find_filesystem(directory: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if directory.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _measure_sync_ms(directory: Path) -> float:
    path = directory / "sync"
    took = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.pwrite(descriptor, os.urandom(8192), 0)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return sorted(took)[_SYNCS // 2] * 1000


def _find_commit() -> str:
    """The commit of this checkout, and whether its daemon or SQL was changed since."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "daemon", "sql"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return f"commit {commit.stdout.strip()}{' with changes' if changed.stdout.strip() else ''}"
