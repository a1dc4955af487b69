"""This process's connections, by which pickles of clients and files come back."""

import os
import threading
from typing import Any

from ._forebay import Client, Control, File

_lock = threading.Lock()
_clients: dict[tuple[Any, ...], Client] = {}
_controls: dict[str, Control] = {}


def _forget() -> None:
    """A forked child has none: those of its parent are the parent's."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()
    _controls.clear()


os.register_at_fork(after_in_child=_forget)


def connect_again(endpoint: str, options: dict[str, Any]) -> Client:
    """This process's client of an endpoint."""
    key = (endpoint, *sorted(options.items()))
    with _lock:
        client = _clients.get(key)
        if client is None or client.closed:
            client = _clients[key] = Client(endpoint, **options)
        return client


def control_again(address: str) -> Control:
    """This process's connection to a control plane."""
    with _lock:
        control = _controls.get(address)
        if control is None:
            control = _controls[address] = Control(address)
        return control


def open_again(client: Client, name: str, generation: int) -> File:
    """The same generation of a file."""
    return client.open(name, generation)
