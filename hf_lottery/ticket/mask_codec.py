"""Compress the packed bits of a mask to within 5% of the entropy of independent bits, with zlib's Huffman coder.

A random mask has no repetitions, and a compressor that looks for them does worse (zstd and deflate at their usual
levels end 7 to 90% above the entropy). What helps is to give frequent symbols short codes:

* from about 6% to 94% density, the symbols are the packed bytes: eight weights each;
* at other densities, they are the gaps between the rarer bits, whose lengths have a geometric distribution; where the
  gaps are long, their low byte is close to random and is stored uncoded;
* where whole rows are equal (pruned neurons, heads), deflate's run-length mode.

Each coded tensor is one tag byte and the smallest of these. zlib comes with Python, so no package is needed.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

_RAW, _DEFLATE, _GAPS_OF_ONES, _GAPS_OF_ZEROS = range(4)
_GAPS_BELOW = 0.06  # density of the rarer bit; the Huffman code of bytes is over 5% wasteful below about 0.05
_LONG_GAP = 200  # mean gap from which the low byte is stored apart, uncoded
_GAP_HEADER = struct.Struct("<QB")  # how many gaps, and how many low bytes (0 or 1) each has
_ESCAPE = 255  # this symbol means: add 255 and read the next symbol


class CodecError(ValueError):
    """The bytes are not what `encode` writes for this many weights."""


def encode(packed: np.ndarray, numel: int) -> bytes:
    """Packed bits (uint8, C order, most significant bit first) of `numel` weights -> coded bytes."""
    raw = packed.tobytes()
    ones = int(np.bitwise_count(packed).sum(dtype=np.int64)) if numel else 0
    rarer = min(ones, numel - ones)
    candidates = [bytes([_RAW]) + raw, bytes([_DEFLATE]) + _deflate(raw, zlib.Z_RLE)]
    if rarer < _GAPS_BELOW * numel:
        candidates.append(_encode_gaps(packed, numel, of_zeros=rarer < ones))
    else:
        candidates.append(bytes([_DEFLATE]) + _deflate(raw, zlib.Z_HUFFMAN_ONLY))
    return min(candidates, key=len)


def decode(coded: bytes, numel: int) -> np.ndarray:
    """The inverse of `encode`. Allocates at most a few bytes for each of the `numel` weights, whatever `coded` holds.

    Raises:
        CodecError: the bytes are damaged, or are not `numel` weights.
    """
    tag, body = coded[:1], coded[1:]
    if tag == bytes([_RAW]):
        packed = np.frombuffer(body, dtype=np.uint8)
    elif tag == bytes([_DEFLATE]):
        packed = np.frombuffer(_inflate(body, (numel + 7) // 8), dtype=np.uint8)
    elif tag in (bytes([_GAPS_OF_ONES]), bytes([_GAPS_OF_ZEROS])):
        packed = _decode_gaps(body, numel, of_zeros=tag == bytes([_GAPS_OF_ZEROS]))
    else:
        raise CodecError(f"unknown coding {tag.hex() or 'of no bytes'}")
    if len(packed) != (numel + 7) // 8:
        raise CodecError(f"{len(packed)} bytes of bits, not the {(numel + 7) // 8} of {numel} weights")
    return packed


def _encode_gaps(packed: np.ndarray, numel: int, of_zeros: bool) -> bytes:
    bits = np.unpackbits(packed, count=numel)
    positions = np.flatnonzero(bits == 0 if of_zeros else bits)
    gaps = np.diff(positions, prepend=-1) - 1
    low_bytes = int(len(gaps) > 0 and gaps.mean() >= _LONG_GAP)
    low = (gaps & 0xFF).astype(np.uint8).tobytes() if low_bytes else b""
    gaps >>= 8 * low_bytes
    escapes = gaps // _ESCAPE
    symbols = np.full(len(gaps) + int(escapes.sum()), _ESCAPE, dtype=np.uint8)
    symbols[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    tag = bytes([_GAPS_OF_ZEROS if of_zeros else _GAPS_OF_ONES])
    return tag + _GAP_HEADER.pack(len(gaps), low_bytes) + low + _deflate(symbols.tobytes(), zlib.Z_HUFFMAN_ONLY)


def _decode_gaps(body: bytes, numel: int, of_zeros: bool) -> np.ndarray:
    gaps = _read_gaps(body, numel)
    positions = np.cumsum(gaps + 1) - 1
    if len(positions) and positions[-1] >= numel:
        raise CodecError(f"a gap ends after the last of {numel} weights")
    bits = np.full(numel, of_zeros, dtype=np.bool_)
    bits[positions] = not of_zeros
    return np.packbits(bits)


def _read_gaps(body: bytes, numel: int) -> np.ndarray:
    """The lengths of the gaps, int64."""
    if len(body) < _GAP_HEADER.size:
        raise CodecError("the header of the gaps is cut off")
    count, low_bytes = _GAP_HEADER.unpack_from(body)
    body = body[_GAP_HEADER.size :]
    # checked before anything is allocated
    if count > _GAPS_BELOW * numel or low_bytes > 1 or len(body) < count * low_bytes:
        raise CodecError(f"{count} gaps do not fit {numel} weights")
    low = np.frombuffer(body[: count * low_bytes], dtype=np.uint8)
    most = count + (numel >> (8 * low_bytes)) // _ESCAPE
    symbols = np.frombuffer(_inflate(body[count * low_bytes :], most), dtype=np.uint8)
    ends = symbols != _ESCAPE
    if int(ends.sum()) != count or (count and not ends[-1]):
        raise CodecError(f"the number of gaps is not {count}")
    gaps = np.diff(np.cumsum(symbols, dtype=np.int64)[ends], prepend=0) << (8 * low_bytes)
    return gaps + low if low_bytes else gaps


def _deflate(data: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return coder.compress(data) + coder.flush()


def _inflate(data: bytes, most: int) -> bytes:
    """Decompress; raises CodecError, and allocates no more, where the result has more than `most` bytes."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = decoder.decompress(data, most + 1)
    except zlib.error as error:
        raise CodecError(str(error)) from None
    if len(result) > most or not decoder.eof or decoder.unused_data:
        raise CodecError(f"the coded bits do not expand to at most {most} bytes")
    return result
