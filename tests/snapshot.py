"""What lies in a folder, to be compared with what lies there later."""

from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The time of change and the bytes of every file in and under a folder, by its path from there."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}
