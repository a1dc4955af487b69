"""Files of a Forebay node, read into memory that the node writes itself.

>>> import forebay
>>> client = forebay.connect()                        # shared memory on the same host, else TCP
>>> file, buffer = client.open("data/train/shard-000.tar"), client.alloc(1 << 20)
>>> read = file.read_into(buffer)                     # starts; read.result() waits
"""

from typing import Any

from ._again import connect_again
from ._doctor import caps
from ._errors import (
    Busy,
    DataLoss,
    Denied,
    Disconnected,
    Error,
    Fenced,
    InputOutput,
    Invalid,
    NoSpace,
    NotFound,
    NotResident,
    Stale,
    Unsupported,
)
from ._forebay import VERSION as __version__
from ._forebay import Buffer, Client, File, Future, Registration, Writer
from ._url import split

__all__ = [
    "Buffer",
    "Busy",
    "Client",
    "DataLoss",
    "Denied",
    "Disconnected",
    "Error",
    "Fenced",
    "File",
    "Future",
    "InputOutput",
    "Invalid",
    "NoSpace",
    "NotFound",
    "NotResident",
    "Registration",
    "Stale",
    "Unsupported",
    "Writer",
    "__version__",
    "caps",
    "connect",
    "open",
]


def connect(endpoint: str = "auto", **options: Any) -> Client:
    """Connects to a node.

    ``endpoint`` is ``auto``, ``unix:/path``, ``tcp://host:port`` or ``rdma://host:port``. Options:
    ``timeout`` and ``connect_timeout`` in seconds, ``credits`` and ``queue`` (requests in flight,
    and waiting), ``verify`` (checksums over the wire), ``spin`` (seconds to poll before sleeping),
    ``proof`` (what ``forebay session grant`` prints, or a function that returns it, called for each
    connection; without it, the variable ``FOREBAY_PROOF``). For reads into the memory of GPUs, of
    which each has a ring of its own: ``gpu_ring`` (bytes of host memory to pin), ``gpu_piece``
    (bytes that are read and copied at once) and ``gpu_policy`` (the ways that are good enough:
    ``auto``, a way's name such as ``staged``, or ``staged-or-better``).
    """
    return Client(endpoint, **options)


def open(url: str, *, endpoint: str = "auto", generation: int = 0, **options: Any) -> File:
    """Opens ``forebay://silo/key``, ``forebay://host:port/silo/key`` or ``silo/key`` for reading.

    Calls with the same endpoint and options share a client.
    """
    place, name = split(url)
    return connect_again(place or endpoint, options).open(name, generation)
