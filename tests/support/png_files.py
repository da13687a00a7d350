"""PNG files byte by byte: depths and chunks that Pillow does not write itself."""

import struct
import zlib

import numpy as np

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(samples, depth, kind, *chunks, after=(), interlaced=False):
    """A file of samples (H, W) or (H, W, C), each below 2^depth, with chunks of (kind, data) before
    the pixels and after them."""
    samples = np.asarray(samples)
    height, width = samples.shape[:2]
    passes = [samples]
    if interlaced:  # Adam7: first row, first column, steps of rows and columns
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        starts += [(0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [samples[y::dy, x::dx] for y, x, dy, dx in starts]
    rows = [row for one in passes if one.size for row in one]
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    data = zlib.compress(b"".join(b"\0" + packed(row, depth) for row in rows))
    body = [(b"IHDR", head), *chunks, (b"IDAT", data), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)


def packed(row, depth):
    """The bytes of a row."""
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def transparent(*colour):
    """tRNS of grey and of colour: the one value that is transparent, in the depth of the file."""
    return b"tRNS", struct.pack(f">{len(colour)}H", *colour)


def orientation(value):
    """eXIf, with nothing but how the picture is turned."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    return b"eXIf", b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
