"""What W&B wrote to its own file, read back."""

import json
import struct
import time
from pathlib import Path


def finished_records(path: Path, *, within_s: float = 60) -> list:
    """The protobuf records of the .wandb file of a run that has been finished.

    W&B's service answers before its last block is on the disk, so this waits for the exit record.
    """
    end = time.monotonic() + within_s
    while True:
        records = _records(path.read_bytes())
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, f"{path} has no exit record after {within_s} s"
        time.sleep(0.05)


def history(records: list) -> list[dict]:
    """What was logged, as one dict for each call."""
    rows = []
    for record in records:
        if record.HasField("history"):
            row: dict = {}
            for item in record.history.item:
                *parents, leaf = item.nested_key or [item.key]
                place = row
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[leaf] = json.loads(item.value_json)
            rows.append(row)
    return rows


def _records(data: bytes) -> list:
    """The whole records of a LevelDB log after a 7-byte header."""
    from wandb.proto import wandb_internal_pb2

    assert data[:4] in (b"", b":W&B")
    position, whole, records = 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            break
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records
