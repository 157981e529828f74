"""What wandb has written into a run directory, read without wandb's own reader, which asks for an account."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4


def records(path: Path) -> Iterator[Record]:
    """A .wandb file is a LevelDB log of protocol buffers: blocks of chunks, each checksum, length, kind, bytes."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", f"{path} holds {len(data)} bytes"
    at, record = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, call by call."""
    return [
        {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
        for record in records(path)
        if record.HasField("history")
    ]
