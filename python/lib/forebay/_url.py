"""``forebay://`` URLs."""

_SCHEME = "forebay://"


def split(url: str) -> tuple[str | None, str]:
    """The endpoint, if the URL names one, and ``silo/key``.

    The part before the first slash is a host if it has a port: names of silos have no colon.
    """
    rest = url.removeprefix(_SCHEME)
    place, slash, name = rest.partition("/")
    if ":" in place and url.startswith(_SCHEME):
        return f"tcp://{place}", name
    return None, place + slash + name
