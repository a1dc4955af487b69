"""What pickles of clients and files come back by."""

import os
import threading
from typing import Any

from ._forebay import Client, File

_lock = threading.Lock()
_clients: dict[tuple[Any, ...], Client] = {}


def _forget_clients() -> None:
    """A forked child has none: those of its parent are the parent's."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_clients)


def connect_again(endpoint: str, options: dict[str, Any]) -> Client:
    """This process's client of an endpoint."""
    key = (endpoint, *sorted(options.items()))
    with _lock:
        client = _clients.get(key)
        if client is None or client.closed:
            client = _clients[key] = Client(endpoint, **options)
        return client


def open_again(client: Client, name: str, generation: int) -> File:
    """The same generation of a file."""
    return client.open(name, generation)
