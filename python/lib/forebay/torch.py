"""Training data for torch: tar shards as samples, and batches that are on a device in time.

>>> shards = [f"forebay://data/train/{n:05}.tar" for n in range(64)]
>>> dataset = ShardDataset(shards, shuffle=True, decode={"jpg": decode_image, "cls": int})
>>> for epoch in range(10):
...     dataset.set_epoch(epoch)
...     for batch in DevicePrefetcher(DataLoader(dataset, 64, num_workers=4), "cuda"):
...         ...
"""

import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ._again import connect_again
from ._errors import DataLoss, Error, InputOutput, Invalid, NotFound, NotResident, Stale
from ._shards import Pipeline, Start
from ._tar import samples
from ._url import split

__all__ = ["DevicePrefetcher", "ShardDataset"]

_log = logging.getLogger(__name__)
_STATE = 1
# What is one shard's, and no reason to fear for the next ones.
_OF_A_SHARD = (DataLoss, NotFound, NotResident, Stale, InputOutput)

Sample = dict[str, Any]
Decoders = Mapping[str, Callable[[bytes], Any]]


class ShardDataset(IterableDataset[Any]):
    """Samples of tar shards on a node, as WebDataset lays them out.

    A sample is a dictionary: ``__key__``, ``__url__``, and the bytes of its members by extension,
    or what ``decode`` makes of them: a function for each extension, or one of the whole sample.
    Ranks and the workers of a ``DataLoader`` share the shards out among themselves, each shard to
    one of them; ``rank`` and ``world_size`` are those of ``torch.distributed`` where that runs.
    With ``shuffle`` the order of the shards depends on ``seed`` and on the epoch that
    ``set_epoch`` names.

    ``pieces`` reads of ``piece_bytes`` each are on the way, into memory that the node writes; the
    shard after the current one is begun early. Each process connects by itself, when it iterates,
    with ``endpoint`` and ``options`` as for ``forebay.connect``.

    A shard that is cut off or damaged raises ``forebay.DataLoss`` with its URL and the offset.
    With ``on_error="skip"`` the rest of a shard that cannot be read is left out and logged, and the
    next one follows; errors that concern all of them, such as a lost node, are raised nevertheless.

    ``state_dict`` says where the next sample begins, and ``load_state_dict`` makes the next
    iteration begin there. Both belong to the process that iterates: torchdata's
    ``StatefulDataLoader`` calls them in its workers.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        decode: Decoders | Callable[[Sample], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: str = "raise",
        piece_bytes: int = 4 << 20,
        pieces: int = 4,
        endpoint: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        places = {split(url)[0] for url in urls}
        if len(places) > 1:
            raise Invalid("the shards of one dataset are on one node: make a dataset for each")
        if on_error not in ("raise", "skip"):
            raise Invalid(f'on_error is "raise" or "skip", and not {on_error!r}')
        if piece_bytes < 1 or pieces < 1:
            raise Invalid("at least one piece of at least one byte is read")
        self._urls = list(urls)
        self._endpoint = next(iter(places), None) or endpoint
        self._options = options
        self._decode = decode
        self._shuffle, self._seed = shuffle, seed
        self._rank, self._world_size = _place(rank, world_size)
        self._on_error = on_error
        self._piece_bytes, self._pieces = piece_bytes, pieces
        # Workers that outlive an epoch have to see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._state: dict[str, Any] | None = None
        self._resume: dict[str, Any] | None = None
        self._decoding = False

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch whose order the next iterations have, in workers, too."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        state, self._resume = self._resume or self._beginning(), None
        self._decoding = False
        self._check(state)
        self._state = state
        return self._from(state)

    def _from(self, state: dict[str, Any]) -> Iterator[Any]:
        """What is left of an epoch."""
        urls, first = self._shards_of(state["epoch"]), state["shard"]
        if first >= len(urls):
            return
        starts = [Start(url) for url in urls[first:]]
        starts[0] = Start(urls[first], state["generation"], state["offset"])
        client = connect_again(self._endpoint, self._options)
        pipeline = Pipeline(client, starts, self._piece_bytes, self._pieces)
        for place, start in enumerate(starts):
            try:
                yield from self._samples(pipeline, place, state | {"shard": first + place})
            except Error as error:
                raised = self._on_error == "raise" or self._decoding
                if raised or not isinstance(error, _OF_A_SHARD):
                    error.add_note(f"reading {start.url}")
                    raise
                _log.warning("the rest of %s is left out: %s", start.url, error)
            finally:
                pipeline.close(place)
            self._state = _after(state, first + place)

    def _samples(self, pipeline: Pipeline, place: int, state: dict[str, Any]) -> Iterator[Any]:
        """Those of one shard, while the state says where the next one begins."""
        shard = pipeline.open(place)
        try:
            for key, members, begin in samples(shard):
                sample = self._decoded(shard.url, key, members)
                if begin < shard.size:
                    self._state = state | {"offset": begin, "generation": shard.generation}
                else:
                    self._state = _after(state, state["shard"])
                yield sample
        finally:
            shard.close()

    def _decoded(self, url: str, key: str, members: dict[str, bytes]) -> Any:
        sample: Sample = {"__key__": key, "__url__": url, **members}
        # Whatever a decoder raises is no damage of the shard.
        self._decoding = True
        try:
            if callable(self._decode):
                sample = self._decode(sample)
                self._decoding = False
                return sample
            for extension, decode in (self._decode or {}).items():
                if extension in members:
                    sample[extension] = decode(members[extension])
        except Exception as error:
            error.add_note(f"decoding sample {key!r} of {url}")
            raise
        self._decoding = False
        return sample

    # Where an iteration is.

    def state_dict(self) -> dict[str, Any]:
        """Where the next sample of this process begins."""
        return dict(self._resume or self._state or self._beginning())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration of this process begins there."""
        if state.get("version") != _STATE:
            raise Invalid("the state is of another version of this package")
        self._resume = dict(state)

    def _beginning(self) -> dict[str, Any]:
        worker, workers = _worker()
        names = hashlib.sha256("\n".join(self._urls).encode()).hexdigest()
        return {
            "version": _STATE,
            "epoch": int(self._epoch),
            "shard": 0,
            "offset": 0,
            "generation": 0,
            "of": [names, self._shuffle, self._seed, self._rank, self._world_size, worker, workers],
        }

    def _check(self, state: dict[str, Any]) -> None:
        now = self._beginning()["of"]
        if list(state["of"]) != now:
            raise Invalid(
                "the state is of other shards, another order of them, or another rank or worker: "
                f"shards, shuffle, seed, rank of how many, worker of how many were {state['of']}, "
                f"and are {now}"
            )

    def _shards_of(self, epoch: int) -> list[str]:
        """This worker's of this rank's, in the epoch's order."""
        urls = list(self._urls)
        if self._shuffle:
            random.Random(f"{self._seed} {epoch}").shuffle(urls)
        worker, workers = _worker()
        return urls[self._rank :: self._world_size][worker::workers]


class DevicePrefetcher:
    """Batches of a loader, the next ones on their way to a device.

    Tensors, also in dictionaries, lists and tuples, are pinned and copied on a stream of their own,
    ``depth`` batches ahead. Whoever takes a batch may use it on the stream that is current then. To
    a device without streams they are moved when they are asked for, and batches for the CPU pass
    through.
    """

    def __init__(self, loader: Iterable[Any], device: str | torch.device, depth: int = 2) -> None:
        if depth < 1:
            raise Invalid("at least one batch is on its way")
        self._loader, self._device, self._depth = loader, torch.device(device), depth

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        if self._device.type == "cuda":
            return self._ahead()
        return (_each(batch, lambda it: it.to(self._device)) for batch in self._loader)

    def _ahead(self) -> Iterator[Any]:
        stream = torch.cuda.Stream(self._device)
        batches = iter(self._loader)
        # A batch on the device, when it is there, and the pinned one that it is copied from.
        under_way: deque[tuple[Any, Any, Any]] = deque()

        def send() -> None:
            try:
                batch = next(batches)
            except StopIteration:
                return
            pinned = _each(batch, lambda it: it if it.is_cuda else it.pin_memory())
            with torch.cuda.stream(stream):
                moved = _each(pinned, lambda it: it.to(self._device, non_blocking=True))
                under_way.append((moved, stream.record_event(), pinned))

        for _ in range(self._depth):
            send()
        while under_way:
            moved, there, pinned = under_way.popleft()
            current = torch.cuda.current_stream(self._device)
            current.wait_event(there)
            _each(moved, partial(torch.Tensor.record_stream, s=current))
            # The pinned memory goes back to torch's cache, which keeps it until the copy is over.
            del pinned
            send()
            yield moved


def _each(batch: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A batch with its tensors changed."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_each(value, change) for value in batch)
    return batch


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which of how many ranks this is."""
    if rank is None and world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise Invalid("rank and world_size go together, and the rank is the lower one")
    return rank, world_size


def _worker() -> tuple[int, int]:
    """Which of how many workers this is."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def _after(state: dict[str, Any], shard: int) -> dict[str, Any]:
    """The state when a shard is over."""
    return state | {"shard": shard + 1, "offset": 0, "generation": 0}
