"""Where many tensors are read to, a bounded number of them at a time."""

from typing import Any

import numpy as np

from ._errors import Busy, NoSpace
from ._forebay import Client

UNDER_WAY = 64
BYTES_UNDER_WAY = 256 << 20


def room(client: Client, size: int) -> Any:
    """Memory for a tensor: the node's to write, as long as it maps more of that."""
    if size:
        try:
            return client.alloc(size)
        except (Busy, NoSpace):
            pass
    return np.empty(size, np.uint8)
