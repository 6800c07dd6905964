"""Bytes of raw files, piece by piece: decompressed, and cut between rows. No file is in memory as a whole."""

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import zstandard

from lrec.errors import UserError

COMPRESSIONS = (".gz", ".xz", ".zst")
_OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
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
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
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
            piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the stream ends before its end mark")


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of a text file, without the line end after the last row."""

    name: str  # of the file, for messages
    row: int  # number of the first row
    text: bytes
    quotes: bool = False  # a line end between double quotes does not end a row

    @cached_property
    def rows(self) -> int:
        return self.count("\n") + 1

    def count(self, character: str) -> int:
        """How often an ASCII character occurs, outside quotes if the file may have them."""
        if self.quotes and b'"' in self.text:
            return len(outside_quotes(self.text, character))
        # Several times faster than bytes.count.
        return int(np.count_nonzero(np.frombuffer(self.text, dtype=np.uint8) == ord(character)))

    def decoded(self) -> str:
        try:
            return self.text.decode()
        except UnicodeDecodeError as error:
            self.refuse(error.start, "not UTF-8 text")

    def refuse(self, place: int, problem: str) -> NoReturn:
        """Raise UserError for the row with the byte at this place."""
        row = self.row + replace(self, text=self.text[:place]).count("\n")
        raise UserError(f"{self.name}, row {row}: {problem}") from None


def row_blocks(parts: Iterable[bytes], name: str, quotes: bool = False) -> Iterator[Block]:
    """Cut a stream of text into blocks of whole rows; UserError for a NUL byte. Line ends at the end of the file and a
    byte order mark at its start are dropped."""
    held, row = bytearray(), 1
    for part in chain(parts, [None]):
        held += part or b""
        if part is not None and len(held) < BLOCK:
            continue
        end = len(held) if part is None else held.rfind(b"\n") + 1
        if part is not None and quotes and b'"' in held:
            end = int(outside_quotes(held, "\n").max(initial=-1)) + 1
        text = bytes(memoryview(held)[:end]).rstrip(b"\r\n")
        if text and (row > 1 or held.strip()):
            block = Block(name, row, text if row > 1 else text.removeprefix(BYTE_ORDER_MARK), quotes)
            if (place := block.text.find(b"\0")) >= 0:
                # A file in another encoding has NULs too. That is the clearer message, if other bytes show it.
                replace(block, text=block.text[:place]).decoded()
                block.refuse(place, "a NUL byte")
            yield block
            row += block.rows
            # Further line ends stay: they are blank rows unless only line ends follow.
            end = len(text)
            del held[: end + (2 if held.startswith(b"\r\n", end) else held.startswith(b"\n", end))]
        elif len(held) > _LONGEST_ROW:
            problem = "a quote is not closed" if quotes and b'"' in held else "the row does not end"
            raise UserError(f"{name}, row {row}: {problem} within {_LONGEST_ROW >> 20} MiB")
    if row == 1:
        raise UserError(f"{name} is empty")


def outside_quotes(text: bytes | bytearray, character: str) -> np.ndarray:
    """Where an ASCII character occurs outside double quotes."""
    places, quotes = (np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord(each)) for each in (character, '"'))
    return places[np.searchsorted(quotes, places) % 2 == 0]
