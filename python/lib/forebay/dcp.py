"""Checkpoints of ``torch.distributed.checkpoint`` on a node.

>>> writer = StorageWriter("forebay://data/run-7/step-1000")
>>> torch.distributed.checkpoint.save(state, storage_writer=writer)
>>> reader = StorageReader("forebay://data/run-7/step-1000")
>>> torch.distributed.checkpoint.load(state, storage_reader=reader)

Each rank's tensors become one new file, their plain bytes one after the other. ``.metadata`` comes
when all of these are committed, and says where each tensor is: so a checkpoint is there as a whole
or not at all, and one that it is saved over stays until then.
``.metadata`` is a pickle, as torch's own is: load checkpoints of people whom you trust.
"""

import io
import itertools
import os
import pickle
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from ._again import connect_again
from ._dcp_reads import Place, Read, ahead
from ._errors import DataLoss, Invalid, NotFound, Unsupported
from ._forebay import Client, Control, File
from ._url import split

__all__ = ["StorageReader", "StorageWriter"]

_METADATA = ".metadata"
_ALIGN = 4096


class _Storage:
    """What writers and readers have in common: a place on a node."""

    def __init__(self, url: str | os.PathLike[str], endpoint: str, options: dict[str, Any]) -> None:
        self._told_endpoint, self._options = endpoint, options
        self._go(url)

    def _go(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url).rstrip("/")
        place, self._name = split(self.url)
        self._endpoint = place or self._told_endpoint
        silo, _, key = self._name.partition("/")
        if not silo or not key:
            raise Invalid(f"{self.url!r} is no forebay://silo/directory")

    @property
    def _client(self) -> Client:
        return connect_again(self._endpoint, self._options)

    @property
    def checkpoint_id(self) -> str:
        """Where the checkpoint is."""
        return self.url

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is a place on a node."""
        return os.fspath(checkpoint_id).startswith("forebay://")


class StorageWriter(_Storage, storage.StorageWriter):
    """Saves a checkpoint under a URL.

    With ``demote`` the node is asked at the end to copy the files to their silo and let go of them;
    ``control`` is the address of its control plane, and ``demotion`` the job's id afterwards.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        demote: bool = False,
        control: str = "127.0.0.1:7441",
        endpoint: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(url, endpoint, options)
        self._demote, self._control = demote, control
        self._save = uuid.uuid4().hex
        self.demotion: str | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Another save begins, under another URL if there is one."""
        if checkpoint_id:
            self._go(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """A save begins, in a file of this rank's own that no save before it wrote.

        A checkpoint whose ranks do not gather is not there at once.
        """
        if not kwargs.get("use_collectives", True):
            raise Unsupported("ranks gather what they saved: leave use_collectives on")
        # Not only after a reset: one writer may save again and again.
        self._save, self.demotion = uuid.uuid4().hex, None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "TorchFuture[list[WriteResult]]":
        """Writes this rank's items, and commits them."""
        written: list[tuple[WriteItem, Place]] = []
        name = f"{self._save}.distcp"
        if plan.items:
            with self._client.create(f"{self._name}/{name}") as writer:
                end = 0
                for item in plan.items:
                    place, content = _content(item, planner.resolve_data(item))
                    offset = -(-end // _ALIGN) * _ALIGN
                    if place.size:
                        end = offset + writer.write(offset, content)
                    written.append((item, replace(place, offset=offset)))
                with writer.commit(length=end) as file:
                    generation = file.generation
        done: TorchFuture[list[WriteResult]] = TorchFuture()
        done.set_result(
            [
                WriteResult(
                    index=item.index,
                    size_in_bytes=place.size,
                    storage_data=replace(place, file=name, generation=generation),
                )
                for item, place in written
            ]
        )
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Makes the checkpoint visible."""
        places = {result.index: result.storage_data for result in itertools.chain(*results)}
        metadata.storage_data = places
        metadata.storage_meta = self.storage_meta()
        with self._client.create(f"{self._name}/{_METADATA}") as writer:
            writer.write(0, pickle.dumps(metadata))
        if self._demote:
            files = sorted({place.file for place in places.values()})
            names = [f"{self._name}/{file}" for file in (*files, _METADATA)]
            self.demotion = Control(self._control).demote(names)

    def storage_meta(self) -> StorageMeta | None:
        """Which save this is."""
        return StorageMeta(checkpoint_id=self.url, save_id=self._save)


class StorageReader(_Storage, storage.StorageReader):
    """Loads a checkpoint from a URL: of each tensor, those bytes that a plan asks for."""

    def __init__(
        self, url: str | os.PathLike[str], *, endpoint: str = "auto", **options: Any
    ) -> None:
        super().__init__(url, endpoint, options)
        self._places: dict[Any, Place] = {}
        self._load = uuid.uuid4().hex

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Another load begins, from another URL if there is one."""
        if checkpoint_id:
            self._go(checkpoint_id)
        self._places, self._load = {}, uuid.uuid4().hex

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds."""
        try:
            with self._client.open(f"{self._name}/{_METADATA}") as file:
                metadata = pickle.loads(file.pread(0, file.size))
        except NotFound as error:
            raise NotFound(f"there is no whole checkpoint at {self.url}: {error}") from error
        if not isinstance(metadata, Metadata):
            raise DataLoss(f"{self.url}/{_METADATA} holds something else")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self._load
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Takes note of where everything is."""
        self._places = metadata.storage_data
        if not all(isinstance(place, Place) for place in self._places.values()):
            raise DataLoss(f"{self.url} was not saved by forebay.dcp: use the reader of its writer")

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "TorchFuture[None]":
        """Reads what a plan asks for, many ranges at a time."""
        client = self._client
        files: dict[tuple[str, int], File] = {}
        try:
            for item in plan.items:
                place = self._places[item.storage_index]
                if (place.file, place.generation) not in files:
                    name = f"{self._name}/{place.file}"
                    files[place.file, place.generation] = client.open(name, place.generation)
            tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
            blobs = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
            self._load_blobs(client, files, blobs, planner)
            for read in ahead(self._reads(client, files, tensors, planner)):
                read.finish(planner)
        finally:
            for file in files.values():
                file.close()
        done: TorchFuture[None] = TorchFuture()
        done.set_result(None)
        return done

    def _load_blobs(
        self,
        client: Client,
        files: dict[tuple[str, int], File],
        items: Sequence[ReadItem],
        planner: LoadPlanner,
    ) -> None:
        places = [self._places[item.storage_index] for item in items]
        ranges = [(files[p.file, p.generation], p.offset, p.size) for p in places]
        for item, content in zip(items, client.read_ranges(ranges), strict=True):
            if isinstance(content, Exception):
                raise content
            if len(content) != self._places[item.storage_index].size:
                raise DataLoss(f"{item.storage_index.fqn!r} of {self.url} is cut off")
            planner.load_bytes(item, io.BytesIO(content))

    def _reads(
        self,
        client: Client,
        files: dict[tuple[str, int], File],
        items: Sequence[ReadItem],
        planner: LoadPlanner,
    ) -> Iterator[Read]:
        """Started, one by one."""
        for item in items:
            place = self._places[item.storage_index]
            yield Read(client, files[place.file, place.generation], place, item, planner)


def _content(item: WriteItem, data: Any) -> tuple[Place, Any]:
    """An item's bytes, and what is to be known of them."""
    if item.type == WriteItemType.BYTE_IO:
        content = data.getbuffer()
        return Place("", 0, 0, content.nbytes), content
    tensor = data.detach().cpu().contiguous()
    size = tensor.numel() * tensor.element_size()
    content = tensor.view(-1).view(torch.uint8).numpy() if size else b""
    return Place("", 0, 0, size, tensor.dtype, tuple(tensor.shape)), content
