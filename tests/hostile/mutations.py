"""Bytes made from other bytes, and hostile values: equal seeds give equal ones."""

import random
import struct
from collections.abc import Callable, Sequence

NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)


def mutated(data: bytes, other: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """One to eight changes: bits, bytes, numbers, words, and parts cut, repeated or taken from others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_CHANGES)(changed, other, rng, words)
    return bytes(changed[: 1 << 20])


def _span(changed: bytearray, rng: random.Random) -> slice:
    start = rng.randrange(len(changed) + 1)
    return slice(start, min(start + rng.choice((1, 2, 4, 8, 64, 1024)), len(changed)))


def _bit(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)


def _byte(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        changed[rng.randrange(len(changed))] = rng.randrange(256)


def _number(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    size = rng.choice("BHIQ")
    place = rng.randrange(len(changed) + 1)
    number = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(size))
    packed = struct.pack(rng.choice("<>") + size, number)
    changed[place : place + len(packed)] = packed


def _word(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    span = _span(changed, rng)
    word = rng.choice(words) if words else rng.randbytes(rng.randrange(9))
    changed[span if rng.random() < 0.5 else slice(span.start, span.start)] = word


def _cut(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    del changed[_span(changed, rng)]


def _end(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    del changed[rng.randrange(len(changed) + 1) :]


def _repeat(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    span = _span(changed, rng)
    changed[span.start : span.start] = changed[span] * rng.choice((1, 2, 20, 200))


def _splice(changed: bytearray, other: bytes, rng: random.Random, words: Sequence[bytes]) -> None:
    changed[_span(changed, rng)] = other[_span(bytearray(other), rng)]


_CHANGES: tuple[Callable[[bytearray, bytes, random.Random, Sequence[bytes]], None], ...] = (
    _bit,
    _byte,
    _number,
    _word,
    _cut,
    _end,
    _repeat,
    _splice,
)

VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31 - 1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    10**400,
    "",
    "0.png",
    "../outside/secret.png",
    "/etc/passwd",
    "C:\\secret",
    "..\\secret",
    "sub/../0.png",
    "a\0b",
    "\ud800",
    "\u202e\U0001f400",
    "x" * 5000,
    "a/" * 3000,
    [],
    {},
    [[]],
    [1, 2, 3, 4],
    [1e308, 1e308, 1e308, 1e308],
    [10**400, 0, 1, 1],
    [float("nan")] * 4,
    [[0, 0, 9, 0, 9, 9]],
    {"counts": "x", "size": [1, 2**40]},
)
"""What a json may hold in any place."""


def hostile_value(rng: random.Random) -> object:
    """One of :data:`VALUES`, or one that nests deep."""
    if rng.random() < 0.03:
        value: object = 0
        for _ in range(rng.choice((10, 100, 900))):
            value = [value] if rng.random() < 0.5 else {"x": value}
        return value
    return rng.choice(VALUES)


def strangely_changed(document: object, rng: random.Random) -> object:
    """A json document with a hostile value, an entry twice, or an entry gone, in a random place."""
    if isinstance(document, dict):
        entries = {**document}
        key = rng.choice(list(entries) or [""])
        if rng.random() < 0.1:
            entries.pop(key, None)
        elif rng.random() < 0.75 and isinstance(entries.get(key), dict | list):
            entries[key] = strangely_changed(entries[key], rng)
        else:
            entries[key] = hostile_value(rng)
        return entries
    if isinstance(document, list):
        items = [*document]
        if not items or rng.random() < 0.05:
            return [*items, hostile_value(rng)]
        place = rng.randrange(len(items))
        if rng.random() < 0.1:
            items.insert(place, items[place])
        else:
            items[place] = strangely_changed(items[place], rng)
        return items
    return hostile_value(rng)
