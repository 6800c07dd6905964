"""What torch.distributed.checkpoint and Lightning's AsyncCheckpointIO do when lrec refuses a checkpoint or waits.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_libraries.py 2> /dev/null

Two processes save a table of 1,000 rows with each storage of torch.distributed.checkpoint. The files are then damaged,
lost, mixed with files of another save, or replaced by a stranger's file. Results: benchmarks/checkpoint_libraries.md.
"""

import errno
import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch import distributed, multiprocessing
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

TABLE_VD = torch.arange(4000.0).view(1000, 4)
GIB = 2**30


class Stranger:
    """An object whose pickle runs code when it is read."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, ...]]:
        return print, ("    code of the stranger runs",)


def sharded(mesh: DeviceMesh, table_VD: torch.Tensor) -> dict[str, Any]:
    """A table in shards."""
    return {"table": distribute_tensor(table_VD, mesh, [Shard(0)])}


def two_processes(rank: int, port: int, folder: str) -> None:
    """Save, damage and read again."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))

    def read(what: str, reader: Any, change: Callable[[], object]) -> None:
        if rank == 0:
            print(f"{type(reader).__name__}, {what}:", flush=True)
            change()
        distributed.barrier()
        found = sharded(mesh, torch.full_like(TABLE_VD, -1))
        try:
            dcp.load(found, storage_reader=reader)
            wrong = int((found["table"].full_tensor() != TABLE_VD).any(1).sum())
            said = f"read without an error, {wrong} of {len(TABLE_VD)} rows wrong"
        except BaseException as error:  # CheckpointException is not an Exception
            said = f"refused: {type(error).__name__}"
        if rank == 0:
            print(f"    {said}", flush=True)
        distributed.barrier()

    safe, own = Path(folder) / "safetensors", Path(folder) / "own"
    for table_VD in (TABLE_VD + 1, TABLE_VD):
        kept = {file: file.read_bytes() for file in safe.glob("*.safetensors")}
        distributed.barrier()
        dcp.save(sharded(mesh, table_VD), storage_writer=dcp.HuggingFaceStorageWriter(str(safe), save_distributed=True))
        distributed.barrier()
    dcp.save(sharded(mesh, TABLE_VD), storage_writer=dcp.FileSystemWriter(str(own)))
    distributed.barrier()
    first, second = sorted(safe.iterdir())
    part = sorted(own.glob("*.distcp"))[0]
    read("as written", dcp.HuggingFaceStorageReader(str(safe)), lambda: None)
    whole = first.read_bytes()
    read("one bit flipped", dcp.HuggingFaceStorageReader(str(safe)), lambda: flip(first, len(whole) - 99))
    read("the first shard lost", dcp.HuggingFaceStorageReader(str(safe)), first.unlink)
    mix = lambda: (first.write_bytes(whole), second.write_bytes(kept[second]))  # noqa: E731
    read("killed between two shards", dcp.HuggingFaceStorageReader(str(safe)), mix)
    read("one bit flipped", dcp.FileSystemReader(str(own)), lambda: flip(part, part.stat().st_size // 2))
    index = own / ".metadata"
    read("another's .metadata", dcp.FileSystemReader(str(own)), lambda: index.write_bytes(pickle.dumps(Stranger())))
    distributed.destroy_process_group()


def flip(file: Path, place: int) -> None:
    """Flip a bit of the byte at a place of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= 64
    file.write_bytes(data)


class Disk(TorchCheckpointIO):
    """A disk that is slow, and then full."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self.ended.wait()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_background() -> None:
    """Ask AsyncCheckpointIO for eight saves while a disk is slow."""
    disk, checkpoint = Disk(), {"weights": torch.ones(2**26)}
    files, before = AsyncCheckpointIO(disk), resident()
    for _ in range(8):
        files.save_checkpoint(checkpoint, "last.ckpt")
    print(f"AsyncCheckpointIO, 8 saves of 0.25 GiB, a slow disk: {(resident() - before) / GIB:.2f} GiB of copies wait")
    disk.ended.set()
    time.sleep(1)
    print(f"AsyncCheckpointIO, then a full disk: {files._error!r} is known, and told at the next save or at the end")


def resident() -> int:
    """The resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        multiprocessing.spawn(two_processes, (port, folder), 2)
    in_background()
