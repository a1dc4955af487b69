"""The exceptions: one for each kind of error, and built-in ones where Python has them."""


class Error(Exception):
    """What the node or the client answered; ``kind`` names it as the protocol does."""

    kind = "io"


class NotFound(Error, FileNotFoundError):
    """No such file, generation or silo."""

    kind = "not_found"


class NotResident(Error):
    """The bytes are not on the node, and may not or could not be fetched."""

    kind = "not_resident"


class Stale(Error):
    """The source changed, or the generation asked for is gone: open the file again."""

    kind = "stale"


class Fenced(Error):
    """A controller of a higher epoch has taken over."""

    kind = "fenced"


class Busy(Error, BlockingIOError):
    """The node, or memory, is in use: try again after a while."""

    kind = "busy"


class NoSpace(Error, OSError):
    """No room that may be taken: everything left is pinned, dirty or in use."""

    kind = "no_space"


class DataLoss(Error, OSError):
    """A checksum or a record does not hold."""

    kind = "corrupt"


class InputOutput(Error, OSError):
    """A device, a file system or a silo failed."""

    kind = "io"


class Disconnected(Error, ConnectionError):
    """The node went away, or did not answer in time: connect again."""

    kind = "disconnected"


class Denied(Error, PermissionError):
    """Not allowed."""

    kind = "denied"


class Invalid(Error, ValueError):
    """The request makes no sense as it stands."""

    kind = "invalid"


class Unsupported(Error, NotImplementedError):
    """This node, silo or process cannot do that."""

    kind = "unsupported"


_CLASSES: dict[str, type[Error]] = {
    cls.kind: cls
    for cls in (
        NotFound,
        NotResident,
        Stale,
        Fenced,
        Busy,
        NoSpace,
        DataLoss,
        InputOutput,
        Disconnected,
        Denied,
        Invalid,
        Unsupported,
    )
}


def of_kind(kind: str, message: str) -> Error:
    """The exception of a kind, with the node's words."""
    return _CLASSES.get(kind, Error)(message)
