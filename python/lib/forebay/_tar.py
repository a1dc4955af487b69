"""Samples of tar shards, as WebDataset lays them out, and where in the shard each begins."""

import tarfile
from collections.abc import Iterator
from typing import Protocol

from ._errors import DataLoss

_BLOCK = tarfile.BLOCKSIZE
# A name, or a member's extended headers, may have so many bytes.
_MOST_NAME = 1 << 20
# Members that only describe those that follow.
_DESCRIBING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_SPARSE = "a sparse member: make the shard without"


class Source(Protocol):
    """A shard that is read from one end to the other."""

    url: str
    offset: int
    size: int

    def read(self, size: int) -> bytes:
        """The next bytes, all of which are there."""

    def skip(self, size: int) -> None:
        """Goes on without them."""


def samples(source: Source) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """Each sample's key, its members by extension, and where the next sample begins.

    Members of one sample follow each other, and have all but their extension in common: what comes
    after the first dot of the name. Files without a name or an extension belong to none.
    """
    current, found = "", dict[str, bytes]()
    for begin, name, content in _members(source):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not (stem and dot):
            continue
        key = folder + slash + stem
        if key != current:
            if found:
                yield current, found, begin
            current, found = key, {}
        if extension.lower() in found:
            raise _unsound(source, begin, f"sample {key!r} has two members {extension!r}")
        found[extension.lower()] = content
    if found:
        yield current, found, source.offset


def _members(source: Source) -> Iterator[tuple[int, str, bytes]]:
    """Regular files: where their headers begin, their names and contents."""
    begin, long_name, extended = source.offset, "", dict[str, str]()
    while True:
        at = source.offset
        block = _take(source, _BLOCK, "a header or the end's empty block")
        if not any(block):
            source.skip(source.size - source.offset)
            return
        name, kind, size = _header(source, at, block)
        if kind in _DESCRIBING:
            if not 0 <= size <= _MOST_NAME:
                raise _unsound(source, at, f"a name of {size} bytes")
            text = _take(source, size, "a name")
            _pad(source, size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended = _extended(source, at, text)
            continue
        if any(key.startswith("GNU.sparse.") for key in extended):
            raise _unsound(source, at, _SPARSE)
        if kind in _WITHOUT_DATA:
            size = 0
        if "size" in extended:
            digits = extended["size"]
            size = int(digits) if digits.isdecimal() and len(digits) < 20 else -1
        if size < 0:
            raise _unsound(source, at, "a member of no sound size")
        name = extended.get("path") or long_name or name
        if kind in _REGULAR:
            content = _take(source, size, repr(name))
            _pad(source, size)
            yield begin, name, content
        elif kind == tarfile.GNUTYPE_SPARSE:
            raise _unsound(source, at, _SPARSE)
        else:
            _enough(source, size, repr(name))
            source.skip(size)
            _pad(source, size)
        begin, long_name, extended = source.offset, "", {}


def _header(source: Source, at: int, block: bytes) -> tuple[str, bytes, int]:
    """A member's name, kind and size. The standard library finds out far more, and takes longer."""
    told, size = _number(block[148:156]), _number(block[124:136])
    # The checksum counts its own place as spaces. Some tars of old took bytes for signed.
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if told != total and told != total - 256 * sum(byte >= 128 for byte in block):
        raise _unsound(source, at, "no sound header: its checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == tarfile.POSIX_MAGIC[:6]:
        name = prefix + b"/" + name
    kind = block[156:157]
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE
    return name.decode("utf-8", "surrogateescape"), kind, size


def _number(field: bytes) -> int:
    """Octal digits, or what is too long for them in base 256; -1 if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _extended(source: Source, at: int, text: bytes) -> dict[str, str]:
    """Records of "length key=value" and a line's end, whose length counts all of it."""
    records = {}
    while text.strip(b"\0"):
        digits, space, _ = text.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = text[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(text) or text[length - 1 : length] != b"\n":
            raise _unsound(source, at, "extended headers that cannot be read")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[length:]
    return records


def _take(source: Source, size: int, what: str) -> bytes:
    _enough(source, size, what)
    return source.read(size)


def _enough(source: Source, size: int, what: str) -> None:
    left = source.size - source.offset
    if size > left:
        raise _unsound(
            source, source.offset, f"cut off: {what} has {size} bytes, and {left} follow"
        )


def _pad(source: Source, size: int) -> None:
    padding = -size % _BLOCK
    _enough(source, padding, "a member's padding")
    source.skip(padding)


def _unsound(source: Source, at: int, sentence: str) -> DataLoss:
    return DataLoss(f"{source.url} at offset {at}: {sentence}")
