"""How much memory the processes of a federation take, read from /proc. Run in the end-to-end test (tests/deploy)."""

from __future__ import annotations

from pathlib import Path

PARTS = {"superlink": "flower-superlink", "server": "server start", "run": "flwr-serverapp"}


def megabytes(pid: int, field: str) -> float:
    """Return a field of a process's status in MB, such as VmRSS, or VmHWM for the most it ever held; 0 for one gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:")), 0.0)


def peak_mb(pid: int) -> float:
    """Return the most memory that a process ever held, in MB; 0 for one that is gone."""
    return megabytes(pid, "VmHWM")


def session_mb(leader: int) -> float:
    """Return the proportional memory (Pss: what is shared is divided) of a session's processes, in MB; 0 if none."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            if session == leader:
                lines = (path / "smaps_rollup").read_text().splitlines()
                total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        except (OSError, ValueError, IndexError):
            continue
    return round(total / 1024, 1)


def remember(folder: Path, most: dict[str, float]) -> None:
    """Keep in `most` the peak memory of the processes of the federation in `folder`, by what they are."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            around = (path / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) not in line + around:
            continue
        for name, sign in PARTS.items():
            if sign in line:
                most[name] = max(most.get(name, 0.0), peak_mb(int(path.name)))
