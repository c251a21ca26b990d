"""The wire: every message round-trips, and what does not fit is refused by the field's name."""

import msgpack
import msgspec
import pytest

from protocols.codec import (
    decode_batch,
    decode_envelope,
    decode_envelopes,
    encode_batch,
    encode_envelope,
)
from protocols.envelope import Envelope
from protocols.errno import ProtocolError
from protocols.frames import pack, unpack
from protocols.memory import DecreaseReservation, Multicall, PopulatePhysmap
from protocols.p2m import P2mAddPage
from protocols.registry import MESSAGE_KINDS


def envelope(body):
    return Envelope("toolstack/1", "allocator/0", 7, 0, body)


def raw(body):
    return msgpack.packb([1, -1, 0, [["toolstack/1", "allocator/0", 7, 0, body]]])


def test_every_message_kind_is_named_after_its_tag_and_frozen():
    assert len(MESSAGE_KINDS) > 50
    for tag, kind in MESSAGE_KINDS.items():
        assert tag == tag.lower()
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.array_like


def test_a_batch_round_trips_and_plain_msgpack_reads_it():
    populate = PopulatePhysmap(3, 9, 0, pack([0x200, 0x400]))
    data = encode_batch([envelope(populate)], credits=2)
    batch = decode_batch(data)
    assert batch.credits == 2
    assert batch.envelopes == [envelope(populate)]
    assert unpack(batch.envelopes[0].body.extent_start).tolist() == [0x200, 0x400]
    version, _, _, envelopes = msgpack.unpackb(data)
    assert version == 1
    assert envelopes[0][4][0] == "populate_physmap"
    assert isinstance(envelopes[0][4][4], bytes), "extents travel as bin, never as lists"


def test_an_envelope_alone_round_trips():
    multicall = envelope(Multicall([DecreaseReservation(1, 0, pack([5]), caller=1)]))
    assert decode_envelope(encode_envelope(multicall)) == multicall


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (["populate_physmap", 1, -9, 0, b""], "field `extent_order`: Expected `int` >= 0"),
        (["populate_physmap", 1, 21, 0, b""], "field `extent_order`: Expected `int` <= 20"),
        (["populate_physmap", 0x7FF0, 0, 0, b""], "field `domid`: Expected `int` <= 32751"),
        (["populate_physmap", 1, 0, 0, [1, 2]], "field `extent_start`: Expected `bytes`"),
        (["populate_physmap", 1, 0, 0, b"123"], "field `extent_start`: 3 bytes"),
        (["populate_physmap", 1], "populate_physmap`: Expected `array` of at least length 5"),
        (["populate_physmap", 1, 0, 0, b"", 0, 0], "at most length"),
        (["p2m_add_page", 1, 0, bytes(16), bytes(8)], "field `mfns`: 1 frames beside 2 in `gfns`"),
        (["conjure_memory", 1], "message `conjure_memory`"),
        (["multicall", [["multicall", []]]], "field `entries`"),
        (["nr_done", "all"], "field `nr_done`: Expected `int`, got `str`"),
        (["status", 12], "field `rc`: Expected `int` <= 0"),
    ],
)
def test_a_message_that_does_not_fit_is_refused_by_field(body, complaint):
    with pytest.raises(ProtocolError, match="message") as error:
        decode_batch(raw(body))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\x93\x01\x00", msgpack.packb({"a": 1}), msgpack.packb([9, -1, 0, []])]
)
def test_bytes_that_are_no_batch_are_refused(data):
    with pytest.raises(ProtocolError):
        decode_batch(data)


@pytest.mark.parametrize("decode", [decode_batch, decode_envelope, decode_envelopes])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x94\x04\xff\x00\x91\x95\xa1\xd3", id="text that is not UTF-8"),
        pytest.param(b"\x95\xa1\xd3\xa1a\x01\x00\x90", id="an address that is not UTF-8"),
        pytest.param(b"\x91\x95\xa1\xd3\xa1a\x01\x00\x90", id="an envelope that is not UTF-8"),
        pytest.param(b"\x91\x95\x01\xc7\x01\xff\x01", id="no timestamp"),
        pytest.param(b"\x95\x01\x82\x90\x01\x90\x02", id="keys that are lists"),
    ],
)
def test_bytes_that_msgpack_itself_refuses_are_refused_in_words(decode, data):
    with pytest.raises(ProtocolError):
        decode(data)


def test_constructing_a_mismatched_message_fails_too():
    with pytest.raises(ValueError, match="field `mfns`"):
        P2mAddPage(1, 0, pack([1, 2]), pack([1]))


def test_messages_cannot_be_changed():
    with pytest.raises(AttributeError):
        PopulatePhysmap(1, 0, 0, b"").domid = 2
    assert msgspec.structs.replace(PopulatePhysmap(1, 0, 0, b""), domid=2).domid == 2
