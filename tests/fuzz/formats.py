"""Mutators that know a format: what they give back fits its own lengths and checksums again."""

import struct
import zlib

import msgpack

from tests.fuzz import mutate

MAGIC = b"\xc4\x10shpindex"
CPU_CHANGE = 0x1F003


def own_trace(data, random):
    """A trace of ours with one of its maps changed, its checksums, index and trailer made anew."""
    unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
    unpacker.feed(data)
    header, *blocks = [each for each in unpacker if not isinstance(each, bytes)]
    blocks = [[*block[:5], msgpack.unpackb(block[5])] for block in blocks if block[0] != "index"]
    rows = []
    what = random.random()
    if what < 0.25:
        header = mutate.of_tree(header, random, real=True)
    elif what < 0.75:
        block = random.choice(blocks)
        block[5] = mutate.of_tree(block[5], random, real=True)
    elif what < 0.9:
        at = random.randrange(len(blocks))
        blocks[at] = [*mutate.of_tree(blocks[at][:4], random, real=True), *blocks[at][4:]]
    parts = [msgpack.packb(header)]
    for block in blocks:
        body = msgpack.packb(block[-1])
        fields = [*block[:-2], zlib.crc32(body)]
        parts.append(msgpack.packb([*fields, body]))
        rows.append([*fields, sum(map(len, parts)) - len(body), len(body)])
    if what >= 0.9:
        rows = mutate.of_tree(rows, random, real=True)
    at = sum(map(len, parts))
    body = msgpack.packb({"blocks": rows})
    index = msgpack.packb(["index", len(rows), 0, 0, zlib.crc32(body), body])
    cut = b"" if random.random() < 0.15 else MAGIC + at.to_bytes(8, "little")
    return b"".join([*parts, index, cut])


def windows(data):
    """A xentrace as [pcpu, [record, ...]], each record [event, tsc or None, word, ...]."""
    found, at = [], 0
    while at + 12 <= len(data):
        cpu, size = struct.unpack_from("<II", data, at + 4)
        end, at, records = at + 12 + size, at + 12, []
        while at + 4 <= min(end, len(data)):
            header = struct.unpack_from("<I", data, at)[0]
            has_tsc, extra = header >> 31, header >> 28 & 7
            length = 4 + 8 * has_tsc + 4 * extra
            if at + length > len(data):
                break
            tsc = struct.unpack_from("<Q", data, at + 4)[0] if has_tsc else None
            words = struct.unpack_from(f"<{extra}I", data, at + 4 + 8 * has_tsc)
            records.append([header & 0xFFFFFFF, tsc, *words])
            at += length
        found.append([cpu, records])
        if end > len(data):
            break
    return found


def from_windows(found, random):
    """Its bytes; now and then a window says another size."""
    parts = []
    for cpu, records in found:
        body = b"".join(map(_record, records))
        size = len(body) if random.random() < 0.99 else random.choice(mutate.NUMBERS)
        parts.append(struct.pack("<III", CPU_CHANGE | 2 << 28, cpu % 2**32, size % 2**32) + body)
    return b"".join(parts)


def _record(record):
    event, tsc, *words = record
    words = words[:7]
    header = event & 0xFFFFFFF | len(words) << 28 | (tsc is not None) << 31
    stamp = b"" if tsc is None else struct.pack("<Q", tsc % 2**64)
    return struct.pack("<I", header) + stamp + struct.pack(f"<{len(words)}I", *words)


def xentrace(data, random, size=6000):
    """A few windows of a xentrace, with one to six records changed, dropped, doubled or moved."""
    found = windows(data)
    first = random.choice((0, 0, random.randrange(len(found))))
    found, left = found[first:], size
    for at, (_, records) in enumerate(found):
        del records[left // 20 :]
        left -= 20 * len(records)
        if left <= 20:
            del found[at + 1 :]
            break
    for _ in range(random.randint(1, 6)):
        window = random.choice(found)
        if not window[1] or random.random() < 0.05:
            window[0] = random.choice((window[0] + 1, *mutate.NUMBERS)) & 0xFFFFFFFF
            continue
        _change(window[1], random.randrange(len(window[1])), random)
    return from_windows(found, random)


def _change(records, at, random):
    record = records[at] = list(records[at])
    what = random.randrange(9)
    if what == 0:
        del records[at]
    elif what == 1:
        records.insert(random.randrange(len(records)), record)
    elif what == 2:
        record[0] = random.choice(
            (record[0] ^ 1 << random.randrange(28), random.choice(records)[0])
        )
    elif what == 3 and record[1] is not None:
        record[1] = random.choice((record[1] - 1, record[1] + (1 << 40), *mutate.NUMBERS))
    elif what == 4:
        record[1] = None if record[1] is not None else random.choice(mutate.NUMBERS)
    elif what == 5:
        record.append(random.choice(mutate.NUMBERS) & 0xFFFFFFFF)
    elif what == 6 and len(record) > 2:
        record.pop()
    elif len(record) > 2:
        word = random.randrange(2, len(record))
        near = (record[word] ^ 1 << random.randrange(32), record[word] + 1, record[word] << 9)
        record[word] = random.choice((*near, *mutate.NUMBERS)) & 0xFFFFFFFF
