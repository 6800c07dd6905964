"""The contents of a folder, to compare with its later contents."""

from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file in and under a folder, with its time of change and its bytes, and every folder, by their paths."""
    found = sorted(folder.rglob("*"))
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found if path.is_file()}
    return {str(path.relative_to(folder)): files.get(path, (0, b"")) for path in found}
