#!/usr/bin/env python3
"""A client of a Forebay node over TCP, written from docs/protocol.md alone.

It shares no code with the node, so that an agreement between the two means that the page is right.
Python's standard library is all it needs. It is a test, not a fast client: one request at a time,
and checksums byte by byte.

    protocol_client.py HOST PORT read NAME OFFSET LENGTH   the bytes go to standard output
    protocol_client.py HOST PORT roundtrip NAME BYTES      writes, commits, reads back, compares

FOREBAY_PROOF holds what it shows to a node that wants a proof.
"""

import argparse
import hashlib
import os
import random
import socket
import struct
import sys

MAGIC = b"FOREBAY1"
PROOF_MAGIC = b"FOREBAYP"
REFUSAL_MAGIC = b"FOREBAY0"
VERSION = 1
MAX_BODY_BYTES = 224

HELLO, OPEN, READ, WRITE, COMMIT, CLOSE, STAT, PING = range(1, 9)
FLAG_LONG, FLAG_PAYLOAD_CRC, FLAG_OPEN_WRITE = 1, 2, 4
REPLY, DATA = 0x80, 0xC0

STATUS = {
    1: "not_found", 2: "not_resident", 3: "stale", 4: "fenced", 5: "busy", 6: "no_space",
    7: "corrupt", 8: "io", 9: "disconnected", 10: "denied", 11: "invalid", 12: "unsupported",
}


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data):
    """The CRC32C of some bytes."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


class NodeError(Exception):
    """The node answered with a status other than success."""

    def __init__(self, status, sentence):
        super().__init__(f"{STATUS.get(status, status)}: {sentence}")
        self.status = status


class ProtocolError(Exception):
    """The node, or the page, is wrong."""


class Reply:
    """A reply's fields."""

    def __init__(self, header, body):
        (_, self.status, self.credits, self.tag, self.value, self.payload_crc, self.served,
         self.landing, _, self.service_us) = struct.unpack("<BBHIQIBBHI", header[:28])
        self.body = body


class OpenFile:
    """What OPEN, COMMIT and STAT tell of a handle."""

    def __init__(self, handle, body):
        self.handle = handle
        (file, self.generation, self.length, self.extent_bytes, self.resident_extents,
         self.total_extents) = struct.unpack("<16sQQQII", body[:48])
        self.file = int.from_bytes(file, "little")


class Client:
    """One session."""

    def __init__(self, host, port, timeout=30.0, credits=16, proof=b""):
        self.tag = 0
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall((PROOF_MAGIC + proof if proof else b"") + MAGIC)
        answer = self._exactly(len(MAGIC))
        if answer == REFUSAL_MAGIC:
            status, length = self._exactly(2)
            raise NodeError(status, self._exactly(length).decode())
        if answer != MAGIC:
            raise ProtocolError("this is no Forebay node, or one of another protocol")
        versions = VERSION | VERSION << 16
        hello, _ = self._call(HELLO, handle=versions, length=credits)
        (self.version, self.credits, self.block_bytes, self.features, self.max_transfer_bytes) = (
            struct.unpack("<HHIQQ", hello.body[:24]))
        if self.version != VERSION or self.credits < 1:
            raise ProtocolError(f"version {self.version}, {self.credits} credits")

    def disconnect(self):
        """Ends the session."""
        self.socket.close()

    def open(self, name, generation=0):
        """Opens a file to be read, at a generation or, for 0, at the newest."""
        return self._open(name, 0, 0, generation)

    def create(self, name, expected_length=0):
        """Opens a file to write a new generation of it."""
        return self._open(name, FLAG_OPEN_WRITE, expected_length, 0)

    def _open(self, name, flags, length, argument):
        name = name.encode()
        reply, _ = self._call(OPEN, flags=flags, length=length, argument=argument,
                              segments=[len(name)], inline=name)
        opened = OpenFile(reply.value, reply.body)
        if opened.file != file_id(name):
            raise ProtocolError("the file's id is not the hash of its name")
        return opened

    def read(self, handle, offset, length, verify=True):
        """Reads a range, cut at the end of the file."""
        parts = []
        while length > 0:
            piece = min(length, self.max_transfer_bytes, 1 << 20)
            # Two segments now and then, so that long capsules are sent, too.
            segments = [piece] if piece % 2 else [piece // 2 - 1, piece - piece // 2 + 1]
            reply, data = self._call(READ, flags=FLAG_PAYLOAD_CRC if verify else 0,
                                     handle=handle, offset=offset, length=piece, segments=segments)
            if reply.value > piece or len(data) != reply.value:
                raise ProtocolError(f"{len(data)} bytes came, {reply.value} were announced")
            if verify and crc32c(data) != reply.payload_crc:
                raise ProtocolError(f"the checksum of {piece} bytes at {offset} does not hold")
            parts.append(data)
            if reply.value < piece:
                break
            offset, length = offset + piece, length - piece
        return b"".join(parts)

    def write(self, handle, offset, data, verify=True):
        """Writes a range of a new generation."""
        piece = min(self.max_transfer_bytes, 1_000_003)
        for at in range(0, len(data), piece):
            part = data[at:at + piece]
            reply, _ = self._call(WRITE, flags=FLAG_PAYLOAD_CRC if verify else 0, handle=handle,
                                  offset=offset + at, length=len(part), segments=[len(part)],
                                  payload_crc=crc32c(part) if verify else 0, inline=part)
            if reply.value != len(part):
                raise ProtocolError(f"{reply.value} of {len(part)} bytes were written")

    def commit(self, handle, length):
        """Makes the new generation durable and visible."""
        reply, _ = self._call(COMMIT, handle=handle, length=length)
        return OpenFile(handle, reply.body)

    def stat(self, handle):
        """Asks what is known of a handle."""
        reply, _ = self._call(STAT, handle=handle)
        return OpenFile(handle, reply.body)

    def close(self, handle):
        """Gives a handle back."""
        self._call(CLOSE, handle=handle)

    def ping(self):
        """Asks for nothing."""
        self._call(PING)

    def _call(self, opcode, *, flags=0, handle=0, offset=0, length=0, argument=0, segments=(),
              payload_crc=0, inline=b""):
        self.tag += 1
        if len(segments) > 1:
            flags |= FLAG_LONG
        lengths = list(segments) + [0] * (4 - len(segments))
        capsule = struct.pack("<BBBBIQQQQIIQI", opcode, flags, len(segments), 0, self.tag,
                              handle, offset, length, 0, lengths[0], 0, argument, payload_crc)
        if flags & FLAG_LONG:
            capsule += struct.pack("<I", 0)
            for segment in lengths[1:]:
                capsule += struct.pack("<QII", 0, segment, 0)
            capsule += bytes(12)
        capsule += struct.pack("<I", crc32c(capsule))
        assert len(capsule) in (64, 128)
        self.socket.sendall(capsule + inline)
        return self._answer(length if opcode == READ else 0)

    def _answer(self, room):
        """The reply to the only request in flight, and the bytes that came before it."""
        data, received = bytearray(room), 0
        while True:
            header = self._checked(32, "header")
            kind, tag = header[0], struct.unpack_from("<I", header, 4)[0]
            if tag != self.tag:
                raise ProtocolError(f"a message for request {tag}, where {self.tag} is in flight")
            if kind == DATA:
                at, = struct.unpack_from("<Q", header, 8)
                length, = struct.unpack_from("<I", header, 20)
                if at + length > room or received + length > room:
                    raise ProtocolError(f"{length} bytes at {at} of {room}")
                data[at:at + length] = self._exactly(length)
                received += length
            elif kind == REPLY:
                body_bytes, = struct.unpack_from("<H", header, 22)
                if body_bytes > MAX_BODY_BYTES:
                    raise ProtocolError(f"a body of {body_bytes} bytes")
                body = self._checked(body_bytes, "body")[:-4] if body_bytes else b""
                reply = Reply(header, body)
                if reply.status != 0:
                    raise NodeError(reply.status, body.decode())
                return reply, bytes(data[:received])
            else:
                raise ProtocolError(f"a message of type {kind:#x}")

    def _checked(self, length, what):
        message = self._exactly(length)
        if struct.unpack("<I", message[-4:])[0] != crc32c(message[:-4]):
            raise ProtocolError(f"the checksum of a {what} does not hold")
        return message

    def _exactly(self, length):
        parts = []
        while length > 0:
            part = self.socket.recv(min(length, 1 << 20))
            if not part:
                raise ProtocolError("the node closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def file_id(name):
    """The id of the file with this name (`silo/key`)."""
    silo, _, key = name.partition(b"/")
    return int.from_bytes(hashlib.sha256(silo + b"\0" + key).digest()[:16], "little")


def roundtrip(client, name, length):
    """Writes a generation, commits it, and reads it back in three ways."""
    data = random.Random(length).randbytes(length)
    draft = client.create(name, length)
    if draft.generation != 0:
        raise ProtocolError("a generation that is being written has no number yet")
    client.write(draft.handle, 0, data)
    committed = client.commit(draft.handle, length)
    again = client.open(name)
    for opened in committed, again, client.stat(again.handle):
        if opened.length != length or opened.generation != committed.generation:
            raise ProtocolError(f"generation {opened.generation} of {opened.length} bytes")
    if client.read(committed.handle, 0, length) != data:
        raise ProtocolError("the committed handle reads something else")
    if client.read(again.handle, 0, length + 1000, verify=False) != data:
        raise ProtocolError("a new handle reads something else")
    chooser = random.Random(length + 1)
    for _ in range(20):
        offset = chooser.randint(0, length)
        count = chooser.randint(0, 200_000)
        if client.read(again.handle, offset, count) != data[offset:offset + count]:
            raise ProtocolError(f"{count} bytes at {offset} are something else")
    client.close(committed.handle)
    client.close(again.handle)
    client.ping()
    try:
        client.stat(again.handle)
    except NodeError as error:
        if error.status != 1:
            raise
    else:
        raise ProtocolError("a closed handle still answers")
    return committed


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="A Forebay client written from docs/protocol.md")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    commands = parser.add_subparsers(dest="command", required=True)
    read = commands.add_parser("read", help="print a range of a file")
    read.add_argument("name")
    read.add_argument("offset", type=int)
    read.add_argument("length", type=int)
    trip = commands.add_parser("roundtrip", help="write a generation and read it back")
    trip.add_argument("name")
    trip.add_argument("bytes", type=int)
    arguments = parser.parse_args()
    try:
        proof = bytes.fromhex(os.environ.get("FOREBAY_PROOF", ""))
        client = Client(arguments.host, arguments.port, proof=proof)
        if arguments.command == "read":
            opened = client.open(arguments.name)
            data = client.read(opened.handle, arguments.offset, arguments.length)
            sys.stdout.buffer.write(data)
            client.close(opened.handle)
        else:
            committed = roundtrip(client, arguments.name, arguments.bytes)
            print(f"{arguments.name}: {arguments.bytes} bytes, "
                  f"generation {committed.generation}, read back as written")
        client.disconnect()
    except (NodeError, ProtocolError, OSError) as error:
        print(f"protocol_client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
