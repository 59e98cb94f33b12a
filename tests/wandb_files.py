"""Reads back what wandb wrote for an offline run: a log of records in LevelDB's format, each a protobuf."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7
"""Bytes before the first record, and before each part of a record: checksum (4), length (2), kind (1)."""

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def _payloads(data: bytes) -> Iterator[bytes]:
    """The records of a log file; a record longer than the rest of its block continues in the next one.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    assert data[:4] == b":W&B", "no file of wandb"
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        assert kind in (FULL, FIRST, MIDDLE, LAST), f"kind {kind} at byte {position}"
        position += HEADER
        if position + length > len(data):
            return
        record += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield record
            record = b""


class OfflineRun:
    """An offline run as its file tells it.

    Attributes:
        folder: Of the run, with ``files/media`` in it.
        config: The final configuration.
        history: One dictionary per logged row.
        summary: The final summary, as far as the run set it itself.
        metrics: By name or pattern, the axis and the kinds of summary.
        artifacts: What was logged as artifacts, as protobuf messages, with the aliases.
        run: The record that began the run.
        exit_code: None for a run that was not ended.
    """

    def __init__(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.folder = folder
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, tuple[str, set[str]]] = {}
        self.artifacts: list[Any] = []
        self.run: Any = None
        self.exit_code: int | None = None
        (path,) = folder.glob("run-*.wandb")
        for payload in _payloads(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            self._take(record)

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self._set(self.config, record.run.config.update)
        elif kind == "config":
            self._set(self.config, record.config.update)
        elif kind == "summary":
            self._set(self.summary, record.summary.update)
        elif kind == "history":
            self.history.append({})
            self._set(self.history[-1], record.history.item)
        elif kind == "metric":
            metric = record.metric
            kinds = {field.name for field, value in metric.summary.ListFields() if value}
            self.metrics[metric.name or metric.glob_name] = (metric.step_metric, kinds)
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    @staticmethod
    def _set(target: dict[str, Any], items: Any) -> None:
        for item in items:
            *path, last = list(item.nested_key) or [item.key]
            place = target
            for part in path:
                place = place.setdefault(part, {})
            value = json.loads(item.value_json)
            # wandb's own part of the configuration arrives in pieces.
            place[last] = {**place.get(last, {}), **value} if last == "_wandb" else value

    def column(self, key: str) -> list[Any]:
        """All values of a key, in the order they were logged."""
        return [row[key] for row in self.history if key in row]

    def rows(self, key: str) -> list[dict[str, Any]]:
        """All rows that hold a key."""
        return [row for row in self.history if key in row]

    def table(self, key: str) -> list[dict[str, Any]]:
        """A logged table as one dictionary per row."""
        (entry,) = self.column(key)
        document = json.loads((self.folder / "files" / entry["path"]).read_text())
        return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All runs that wandb wrote below a run folder, oldest first; waits until they are complete.

    The process of wandb goes on writing for a moment after ``finish`` has returned.
    """
    deadline = time.monotonic() + 20
    while True:
        runs = [OfflineRun(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.1)
