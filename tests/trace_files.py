"""Traces of ours taken apart and put together again, with checksums that are right."""

import zlib

import msgpack

from services.trace.blocks import (
    INDEX,
    TRAILER_BYTES,
    Block,
    encode_block,
    encode_header,
    encode_index,
    read_layout,
)


def rebuilt(file, bodies=None, header=None):
    """The file with other contents.

    ``bodies``: for a table a function of the body of its first block and its rows, which changes it
    or returns what stands in its place (an object, or the bytes of none). ``header``: a function
    that changes the header's map.
    """
    bodies = dict(bodies or {})
    layout = read_layout(memoryview(file), "t")
    unpacker = msgpack.Unpacker()
    unpacker.feed(file)
    first = unpacker.unpack()
    del first["format"], first["version"]
    if header is not None:
        header(first)
    out = bytearray(encode_header(first))
    index = []
    for block in layout.blocks:
        body = msgpack.unpackb(file[block.start : block.start + block.size], strict_map_key=False)
        spoil = bodies.pop(block.table, None)
        span = block.first, block.last
        data, made = packed(block.table, block.rows, span, body, spoil)
        index.append(made._replace(start=made.start + len(out)))
        out += data
    end = encode_index(index, len(out))
    if INDEX in bodies:
        body = {"blocks": [list(each) for each in index]}
        data, _ = packed(INDEX, len(index), (0, 0), body, bodies.pop(INDEX))
        end = data + end[-TRAILER_BYTES:]
    assert not bodies, f"no blocks of {bodies}"
    return bytes(out + end)


def packed(table, rows, span, body, spoil):
    """A block as ``encode_block`` makes it, of a body that ``spoil`` has had its way with."""
    found = None if spoil is None else spoil(body, rows)
    if not isinstance(found, bytes):
        return encode_block(table, rows, span, body if found is None else found)
    crc = zlib.crc32(found)
    data = msgpack.packb([table, rows, *span, crc, found])
    return data, Block(table, rows, *span, crc, len(data) - len(found), len(found))
