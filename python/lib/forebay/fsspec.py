"""``forebay://`` for everything that opens files by fsspec.

``fsspec.open("forebay://silo/key")``, ``pandas.read_parquet("forebay://node7:7440/silo/key")``.
Names are of files as a whole: a write makes a new generation, seen by others when it is closed,
and directories exist as far as files are in them. Nothing can be deleted or renamed by this.
"""

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike, tokenize

from ._again import connect_again, control_again
from ._errors import Error, Invalid, NotFound, Unsupported
from ._forebay import Buffer, Client, Control, File, Future, Writer
from ._url import split

_PIECE = 4 << 20
_PIECES = 4
_PAGE = 1000


class ForebayFileSystem(AbstractFileSystem):
    """Files of a node.

    ``endpoint`` is where the node's data path is, as for ``forebay.connect``, and ``control`` its
    control plane, which listings need and nothing else. They show the files that the node knows:
    those of a silo that were never promoted, registered or opened are not among them, but can be
    opened by name.
    """

    protocol = "forebay"
    root_marker = ""

    def __init__(
        self,
        endpoint: str = "auto",
        control: str = "127.0.0.1:7441",
        client_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.control_address = control
        self.client_options = dict(client_options or {})
        # Of an instance: what is of another node has no name here.
        self._strip_protocol = self._named  # type: ignore[method-assign]

    @property
    def client(self) -> Client:
        """This process's client; connects when it is first used."""
        return connect_again(self.endpoint, self.client_options)

    @property
    def control(self) -> Control:
        """The control plane; connects when it is first used."""
        return control_again(self.control_address)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return split(os.fspath(path))[1].strip("/")

    def _named(self, path: Any) -> Any:
        """The name of what is on this node."""
        if isinstance(path, list):
            return [self._named(each) for each in path]
        place, name = split(os.fspath(path))
        if place is not None and place != self.endpoint:
            raise Invalid(
                f"{path} is on another node than this file system's, which is {self.endpoint!r}: "
                "open it by fsspec.open, or make a file system with that endpoint"
            )
        return name.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        place, _ = split(path)
        return {"endpoint": place} if place else {}

    # What is there.

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        silo, _, key = path.partition("/")
        if key:
            try:
                with self.client.open(path) as file:
                    return _entry(path, file.size, file.generation)
            except NotFound:
                pass
            files, _ = self.control.list(path + "/", page_size=1)
            if files:
                return _directory(path)
        elif not silo or silo in self.control.silos():
            return _directory(path)
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if not path:
            entries = [_directory(silo) for silo in self.control.silos()]
        else:
            entries = list(self._children(path).values())
            if not entries:
                entries = [self.info(path)]
                if entries[0]["type"] == "directory":
                    entries = []
        return entries if detail else [entry["name"] for entry in entries]

    def _children(self, path: str) -> dict[str, dict[str, Any]]:
        prefix = path + "/"
        children: dict[str, dict[str, Any]] = {}
        for file in self._known(prefix):
            first, slash, _ = file["name"][len(prefix) :].partition("/")
            name = prefix + first
            if slash:
                children.setdefault(name, _directory(name))
            elif first:
                children[name] = _entry(name, file["size"], file["generation"])
        return children

    def _known(self, prefix: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            files, token = self.control.list(prefix, token, _PAGE)
            yield from files
            if not token:
                return

    def ukey(self, path: str) -> str:
        with self.client.open(self._strip_protocol(path)) as file:
            return str(tokenize(file.stat()["id"], file.generation))

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    # Whole files and ranges.

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        with self.client.open(self._strip_protocol(path)) as file:
            first, size = _range(file, start, end)
            return file.pread(first, size)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("there are as many starts and ends as paths")
        client = self.client
        files: dict[str, File | Error] = {}
        results: list[Any] = [None] * len(paths)
        wanted: list[tuple[File, int, int]] = []
        places: list[int] = []
        for place, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
            name = self._strip_protocol(path)
            if name not in files:
                files[name] = _opened(client, name)
            file = files[name]
            if isinstance(file, Error):
                results[place] = file
            else:
                wanted.append((file, *_range(file, start, end)))
                places.append(place)
        for place, result in zip(places, client.read_ranges(wanted), strict=True):
            results[place] = result
        if on_error != "return":
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        self._check_new(path, mode)
        with self.client.create(path, expected_bytes=memoryview(value).nbytes) as writer:
            writer.write(0, value)

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        elif outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        client = self.client
        with client.open(self._strip_protocol(rpath)) as file:
            callback.set_size(file.size)
            if outfile is not None:
                _stream(client, file, outfile, callback)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb") as local:
                _stream(client, file, local, callback)

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        rpath = self._strip_protocol(rpath)
        self._check_new(rpath, mode)
        if os.path.isdir(lpath):
            return
        with open(lpath, "rb") as local:
            size = os.fstat(local.fileno()).st_size
            callback.set_size(size)
            client = self.client
            with client.create(rpath, expected_bytes=size) as writer:
                buffer = memoryview(client.alloc(_PIECE))
                offset = 0
                while read := local.readinto(buffer):
                    writer.write(offset, buffer[:read])
                    offset += read
                    callback.relative_update(read)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        client = self.client
        try:
            file = client.open(path1)
        except NotFound:
            if self.isdir(path1):
                return
            raise
        with file, client.create(path2, expected_bytes=file.size) as writer:
            for offset, piece in _pieces(client, file):
                writer.write(offset, piece)

    def _check_new(self, path: str, mode: str) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)

    # Open files.

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: Any = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "ForebayFile":
        if mode not in ("rb", "wb", "xb"):
            raise Unsupported(f"files are read or replaced whole: there is no mode {mode!r}")
        if mode == "xb":
            self._check_new(path, "create")
        return ForebayFile(
            self,
            path,
            "rb" if mode == "rb" else "wb",
            block_size or _PIECE,
            autocommit=autocommit,
            cache_type=kwargs.pop("cache_type", "none"),
            cache_options=cache_options,
            **kwargs,
        )

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")

    # Directories are made of names, and nothing goes away.

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def rmdir(self, path: str) -> None:
        pass

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> NoReturn:
        raise _never_deletes()

    def rm_file(self, path: str) -> NoReturn:
        raise _never_deletes()

    def _rm(self, path: str) -> NoReturn:
        raise _never_deletes()

    def mv(self, path1: Any, path2: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise _never_deletes()


class ForebayFile(AbstractBufferedFile):
    """A file open to be read, at one generation, or a new one that ``close`` commits.

    What is closed because of an exception is not committed, and neither is what nobody closes.
    """

    _file: File | None = None
    _writer: Writer | None = None
    # What was being handled when this was opened.
    _handled: BaseException | None = None

    def __init__(self, fs: ForebayFileSystem, path: str, mode: str, *args: Any, **kw: Any) -> None:
        self._client = fs.client
        self._written = 0
        self._handled = sys.exc_info()[1]
        if mode == "rb":
            self._file = self._client.open(path)
            kw["size"] = self._file.size
        super().__init__(fs, path, mode, *args, **kw)
        if mode != "rb":
            self._writer = self._client.create(path)

    def _fetch_range(self, start: int, end: int) -> bytes:
        assert self._file is not None
        return self._file.pread(start, end - start)

    def readinto(self, b: Any) -> int:
        if self.mode != "rb" or self._file is None:
            raise ValueError("the file is not open for reading")
        count = self._file.read_into(b, self.loc).result()
        self.loc += count
        return count

    def _initiate_upload(self) -> None:
        pass

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._writer is not None
        data = self.buffer.getbuffer()
        if len(data):
            self._writer.write(self._written, data)
            self._written += len(data)
        data.release()
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """Makes what was written visible."""
        if self._writer is not None:
            self._writer.commit().close()
            self._writer = None

    def discard(self) -> None:
        """Leaves nothing of what was written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def close(self) -> None:
        error, handled = sys.exc_info()[1], self._handled
        self._handled = None
        if self._is_open() and error is not None and error is not handled:
            # It came since this was opened. What wraps a file closes it without saying why; and
            # whoever closes it while handling an error shall know that nothing was committed.
            self._give_up()
            error.add_note(f"forebay: {self.path} was closed because of this, and not committed")
            raise error
        super().close()
        if self._file is not None:
            self._file.close()

    def _is_open(self) -> bool:
        """Whether something is being written that closing this would commit."""
        return self._writer is not None and not self.closed

    def _give_up(self) -> None:
        self.discard()
        self.closed = True

    def __exit__(self, kind: Any, *args: Any) -> None:
        if kind is not None and self._is_open():
            self._give_up()
        super().__exit__(kind, *args)

    def __del__(self) -> None:
        # A forked child has no writer, and neither has an interpreter that ends.
        with suppress(Exception):
            if self._is_open():
                self._give_up()
                sentence = f"forebay: {self.path} was never closed, and not committed"
                warnings.warn(sentence, ResourceWarning, source=self, stacklevel=2)
            elif not self.closed:
                self.close()


def _never_deletes() -> Unsupported:
    return Unsupported("a node deletes and renames nothing: do that where the silo is")


def _entry(name: str, size: int, generation: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file", "generation": generation}


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _opened(client: Client, name: str) -> File | Error:
    try:
        return client.open(name)
    except Error as error:
        return error


def _range(file: File, start: int | None, end: int | None) -> tuple[int, int]:
    first, last, _ = slice(start, end).indices(file.size)
    return first, max(last - first, 0)


def _pieces(client: Client, file: File) -> Iterator[tuple[int, memoryview]]:
    """The file in order, with the next pieces on the way; each lives until the next one."""
    spare = [client.alloc(min(_PIECE, file.size)) for _ in range(_PIECES) if file.size]
    under_way: deque[tuple[int, Buffer, Future]] = deque()
    offset = 0
    while under_way or offset < file.size:
        while spare and offset < file.size:
            buffer = spare.pop()
            under_way.append((offset, buffer, file.read_into(buffer, offset)))
            offset += len(buffer)
        begin, buffer, future = under_way.popleft()
        yield begin, memoryview(buffer)[: future.result()]
        spare.append(buffer)


def _stream(client: Client, file: File, out: Any, callback: Any) -> None:
    for _, piece in _pieces(client, file):
        out.write(piece)
        callback.relative_update(len(piece))
