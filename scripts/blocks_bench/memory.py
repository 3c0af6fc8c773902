"""Memory of processes, as the kernel counts it."""

from pathlib import Path


def peak_mb(pid: int | str = "self") -> float:
    """Most memory that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
