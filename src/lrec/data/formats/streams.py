"""Bytes of raw files, piece by piece: decompressed, and cut between rows. No file is in memory as a whole."""

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from lrec.errors import UserError

COMPRESSIONS = (".gz", ".xz", ".zst")
_OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)
_PIECE = 1 << 20
BLOCK = 1 << 22
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_ROW = 1 << 27


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces, decompressed according to its ending."""
    try:
        with path.open("rb") as file:
            opened = _OPEN[path.suffix](file) if path.suffix in _OPEN else file
            pieces = iter(lambda: opened.read(_PIECE), b"")
            yield from _unzst(pieces) if path.suffix == ".zst" else pieces
    except _DAMAGE as error:
        raise UserError(f"{path} is cut off or damaged: {first_line(error)}; fetch it again") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _unzst(data: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame: zstandard's own reader of several frames does not notice that a file was cut off."""
    frame = None
    for piece in data:
        while piece:
            # Other readers allow long windows only on request; zstd --long=31 needs one of 2 GiB.
            frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            yield frame.decompress(piece)
            piece = b""
            if frame.eof:
                piece, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the stream ends before its end mark")


def row_blocks(parts: Iterable[bytes], name: str, quotes: bool = False) -> Iterator[bytes]:
    """Cut a stream of text into blocks of whole rows, without the line end after the last row of a block.

    Line ends at the end of the file and a byte order mark at its start are dropped. With `quotes`, a line end between
    double quotes does not end a row. `name` is the file, for messages.
    """
    held, lines = bytearray(), 0
    for part in chain(parts, [None]):
        held += part or b""
        if part is not None and len(held) < BLOCK:
            continue
        end = len(held) if part is None else _last_row_end(held, quotes)
        while end and held[end - 1] in b"\r\n":
            end -= 1
        if end and (lines or held.strip()):
            block = bytes(memoryview(held)[:end])
            yield block if lines else block.removeprefix(BYTE_ORDER_MARK)
            lines += count_byte(block, "\n") + 1
            # Further line ends stay: they are blank rows unless only line ends follow.
            del held[: end + (2 if held.startswith(b"\r\n", end) else held.startswith(b"\n", end))]
        elif len(held) > _LONGEST_ROW:
            problem = "a quote is not closed" if quotes and b'"' in held else "the row does not end"
            raise UserError(f"{name}, row {lines + 1}: {problem} within {_LONGEST_ROW >> 20} MiB")
    if lines == 0:
        raise UserError(f"{name} is empty")


def count_byte(data: bytes, character: str) -> int:
    """How often an ASCII character occurs; several times faster than bytes.count."""
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == ord(character)))


def _last_row_end(held: bytearray, quotes: bool) -> int:
    """Number of bytes up to and including the last line end that ends a row; 0 if there is none."""
    if not quotes or b'"' not in held:
        return held.rfind(b"\n") + 1
    return int(outside_quotes(np.frombuffer(bytes(held), dtype=np.uint8), "\n").max(initial=-1)) + 1


def outside_quotes(text: np.ndarray, character: str) -> np.ndarray:
    """Where an ASCII character occurs outside double quotes."""
    places, quotes = (np.flatnonzero(text == ord(each)) for each in (character, '"'))
    return places[np.searchsorted(quotes, places) % 2 == 0]
