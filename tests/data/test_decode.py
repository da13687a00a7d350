"""Every kind of image file is decoded as a viewer displays it: depth, mode, transparency, palette,
orientation. The expected pixels are computed from the samples, as the PNG specification says, or
rendered by Pillow where that is right."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from support.png_files import (
    COLOUR,
    COLOUR_ALPHA,
    GREY,
    GREY_ALPHA,
    PALETTE,
    orientation,
    png,
    transparent,
)

from ddpm.data import decode
from ddpm.runner.report.grids import Grid, Group, embedded

BACKGROUND = 201
TURNS = range(1, 9)


def square(picture, **changes):
    settings = {"channels": 3, "image_size": 12, "resize_mode": "resize", "center_crop": None}
    settings |= {"background": BACKGROUND, "resample": Image.Resampling.NEAREST}
    return decode.square(picture, **(settings | changes))


def opened(data):
    return Image.open(io.BytesIO(data), formats=decode.FORMATS)


def samples(depth, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**depth, shape)


def eight_bit(values, depth):
    """Scaled as in the specification: to the nearest of 0..255."""
    return np.floor(np.asarray(values) * 255 / (2**depth - 1) + 0.5)


def over(colours, alpha):
    """(H, W, 3) of colours (H, W, 3) and alpha (H, W, 1) in 0..255, over the background."""
    return colours * alpha / 255 + BACKGROUND * (1 - alpha / 255)


def turned(pixels, how):
    """(H, W, C) transformed by EXIF orientation 1 to 8."""
    flips = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    return flips[how] if how <= 4 else np.swapaxes(flips[{5: 1, 6: 4, 7: 3, 8: 2}[how]], 0, 1)


def shown(data, **changes):
    """`square` of a file, as (H, W, C)."""
    return square(opened(data), **changes).transpose(1, 2, 0).astype(float)


# -- one colour that is transparent, in every depth -----------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("turn", [None, 1, 6, 8])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_pixels_of_the_transparent_grey_value_show_the_background(depth, turn, interlaced):
    values = samples(depth, 12, 12)
    key = int(values[3, 4])
    values[5, 5] = key ^ 1  # the nearest other value
    turns = [] if turn is None else [orientation(turn)]
    data = png(values, depth, GREY, transparent(key), *turns, interlaced=interlaced)
    grey = eight_bit(values, depth)[..., None].repeat(3, axis=-1)
    expected = over(grey, np.where(values == key, 0, 255)[..., None])
    assert np.abs(shown(data) - turned(expected, turn or 1)).max() <= 1
    assert np.abs(shown(data, channels=1) - turned(expected[..., :1], turn or 1)).max() <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_pixels_of_the_transparent_colour_show_the_background(depth, interlaced):
    values = samples(depth, 12, 12, 3)
    key = values[3, 4].copy()
    values[5, 5], values[6, 6], values[7, 7] = key, key, key
    values[6, 6, 2] ^= 1  # differs in its last bit
    values[7, 7, 0] ^= 1 << (depth - 1)  # and in its first
    if depth == 16:
        values[8, 8] = key & 255  # what is left where 16 bits are taken for 8
        values[9, 9] = (key & 255) << 8
    data = png(values, depth, COLOUR, transparent(*map(int, key)), interlaced=interlaced)
    alpha = np.where((values == key).all(-1, keepdims=True), 0, 255)
    assert (alpha == 0).sum() == 2
    assert np.abs(shown(data) - over(eight_bit(values, depth), alpha)).max() <= 1


def test_transparent_value_that_no_pixel_has_changes_nothing():
    values = np.arange(144).reshape(12, 12) * 400
    data = png(values, 16, GREY, transparent(1))
    assert np.abs(shown(data)[..., 0] - eight_bit(values, 16)).max() <= 1


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("depth", "kind"),
    [
        *((1, GREY), (8, GREY), (16, GREY), (8, COLOUR), (16, COLOUR), (8, PALETTE)),
        *((8, GREY_ALPHA), (16, GREY_ALPHA), (8, COLOUR_ALPHA), (16, COLOUR_ALPHA)),
    ],
)
def test_every_exif_orientation_is_applied_in_every_mode(depth, kind, where, turn):
    """12 x 7 pixels, so that rotations change the shape."""
    channels = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[kind]
    values = samples(depth, 7, 12, channels)
    palette = samples(8, 256, 3, seed=1).astype(np.uint8)
    chunks = [(b"PLTE", palette.tobytes())] if kind == PALETTE else []
    after = [orientation(turn)] if where == "after" else []
    chunks += [orientation(turn)] if where == "before" else []
    colours = eight_bit(values, depth)
    alpha = colours[..., -1:] if kind in (GREY_ALPHA, COLOUR_ALPHA) else np.full((7, 12, 1), 255)
    if kind == PALETTE:
        colours = palette[values[..., 0]].astype(float)
    elif kind != COLOUR:
        colours = colours[..., :3] if kind == COLOUR_ALPHA else colours[..., :1].repeat(3, -1)
    framed = np.full((12, 12, 3), float(BACKGROUND))
    expected = turned(over(colours, alpha), turn)
    height, width = expected.shape[:2]
    top, left = (12 - height) // 2, (12 - width) // 2
    framed[top : top + height, left : left + width] = expected
    found = shown(png(values, depth, kind, *chunks, after=after), resize_mode="pad")
    deep = depth == 16 and kind in (GREY_ALPHA, COLOUR_ALPHA)  # cut off to 8 bits, twice
    assert np.abs(found - framed).max() <= (2.6 if deep else 1)


# -- palettes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "alphas",
    [b"\0", b"\xff\0", b"\xff\xff", b"\x80\x40", b"", b"\0\x80\xff\x10"],
    ids=lambda alphas: alphas.hex() or "none",
)
def test_palettes_with_alpha_are_blended_with_the_background(depth, alphas):
    """Alpha of all entries or of the first ones: for Pillow an int, bytes or nothing."""
    alphas = alphas[: 2**depth]
    values = samples(depth, 12, 12)
    palette = samples(8, 2**depth, 3, seed=1).astype(np.uint8)
    chunks = [(b"PLTE", palette.tobytes())] + ([(b"tRNS", alphas)] if alphas else [])
    alpha = np.full(2**depth, 255)
    alpha[: len(alphas)] = list(alphas)
    expected = over(palette[values].astype(float), alpha[values][..., None])
    data = png(values, depth, PALETTE, *chunks)
    assert np.abs(shown(data) - expected).max() <= 1
    luma = expected @ [0.299, 0.587, 0.114]
    assert np.abs(shown(data, channels=1)[..., 0] - luma).max() <= 1.5


def test_pixel_index_beyond_the_palette_is_rendered_as_by_pillow():
    data = png([[0, 1, 7]] * 3, 8, PALETTE, (b"PLTE", bytes(range(6))), (b"tRNS", b"\0"))
    rendered = Image.new("RGBA", (3, 3), (BACKGROUND,) * 3)
    rendered.alpha_composite(opened(data).convert("RGBA"))
    assert (shown(data, image_size=3) == np.asarray(rendered.convert("RGB"))).all()


# -- what Pillow writes and renders right: the same pixels ----------------------------------------


def by_pillow(data, mode):
    """Pillow's own rendering, upright, over the background."""
    picture = ImageOps.exif_transpose(opened(data))
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, (BACKGROUND,) * 3)
        canvas.alpha_composite(picture.convert("RGBA"))
        picture = canvas
    return np.asarray(picture.convert(mode)).reshape(12, 12, -1).astype(float)


def exif(turn):
    found = Image.Exif()
    found[decode.ORIENTATION] = turn
    return found


def pillow_writes():
    """Files of every format and mode: format, mode, options."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield "PNG", mode, {}
    for value in (0, 85):
        yield "PNG", "L", {"transparency": value}
        yield "PNG", "P", {"transparency": value}
    yield "PNG", "1", {"transparency": 255}
    yield "PNG", "RGB", {"transparency": (85, 85, 85)}
    yield "PNG", "P", {"transparency": bytes(range(256))}
    yield "PNG", "RGB", {"gamma": 0.1, "icc_profile": b"no profile"}
    for mode in ("L", "RGB", "CMYK"):
        yield "JPEG", mode, {"quality": 95}
        yield "JPEG", mode, {"quality": 95, "progressive": True}
    yield "JPEG", "RGB", {"quality": 95, "subsampling": 2}
    for mode in ("RGB", "RGBA"):
        yield "WEBP", mode, {"lossless": True, "exact": True}
        yield "WEBP", mode, {"quality": 80}
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield "BMP", mode, {}


def stored(kind, mode, options, turn):
    """A file of 12 x 12 pixels, four levels a channel: each occurs."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = (samples(2, 12, 12, bands) * 85).astype(np.uint8)
    if mode == "1":
        picture = Image.fromarray(values[..., 0] > 100)
    elif mode == "P":
        picture = Image.fromarray(values[..., 0])
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(samples(8, 768, seed=2).astype(np.uint8).tobytes())
    else:
        picture = Image.frombytes(mode, (12, 12), values.tobytes())
    if turn is not None and kind != "BMP":
        options = options | {"exif": exif(turn)}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("turn", [None, 3, 5, 6])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    list(pillow_writes()),
    ids=lambda value: str(value)[:40],
)
def test_decoding_agrees_with_pillow(kind, mode, options, turn):
    data = stored(kind, mode, options, turn)
    assert (shown(data) == by_pillow(data, "RGB")).all()
    assert (shown(data, channels=1) == by_pillow(data, "L")).all()


def test_cmyk_is_converted_with_and_without_the_adobe_marker():
    """Photoshop, Pillow and nearly all others store the inverse, which Pillow assumes without the
    marker, too."""
    ink = (samples(2, 2, 2, 4) * 80).astype(np.uint8).repeat(6, 0).repeat(6, 1)
    file = io.BytesIO()
    Image.frombytes("CMYK", (12, 12), ink.tobytes()).save(file, "JPEG", quality=100, subsampling=0)
    data = file.getvalue()
    expected = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert np.abs(shown(data) - expected).mean() < 3
    start = data.index(b"\xff\xee")
    assert data[start + 4 : start + 9] == b"Adobe"
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    data = data[:start] + data[start + 2 + length :]
    assert (shown(data) == by_pillow(data, "RGB")).all()


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "RGBA", "PA", "I;16", "I;16B", "I", "F"])
def test_rare_pillow_modes_are_converted(mode):
    """Colours multiplied by their alpha, palettes with alpha, deep grey of either byte order."""
    rgba = samples(8, 12, 12, 4).astype(np.uint8)
    grey, alpha = rgba[..., 0].astype(float), rgba[..., 3:].astype(float)
    picture = Image.fromarray(rgba)
    expected = over(rgba[..., :3].astype(float), alpha)
    if mode in ("La", "LA"):
        picture = Image.fromarray(rgba[..., [0, 3]]).convert(mode)
        expected = over(grey[..., None].repeat(3, -1), alpha)
    elif mode == "PA":
        colours = Image.fromarray(rgba[..., 0] % 4).convert("P")
        colours.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
        picture = Image.merge("PA", (colours, Image.fromarray(rgba[..., 3])))
        picture.putpalette(colours.getpalette())
        palette = np.array(colours.getpalette()).reshape(-1, 3)
        expected = over(palette[np.asarray(colours)].astype(float), alpha)
    elif mode.startswith("I"):
        deep = samples(16, 12, 12)
        order = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        picture = Image.frombytes(mode, (12, 12), deep.astype(order).tobytes())
        expected = eight_bit(deep, 16)[..., None].repeat(3, -1)
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32))
        expected = grey[..., None].repeat(3, -1)
    else:
        picture = picture.convert(mode)
    assert picture.mode == mode
    found = square(picture).transpose(1, 2, 0).astype(float)
    loss = 255 / np.maximum(alpha, 1) if mode in ("La", "RGBa") else 1  # of what was multiplied
    assert (np.abs(found - expected) <= np.minimum(loss, 2) + 0.51).all()


def test_integers_out_of_range_are_clipped():
    picture = Image.fromarray(np.array([[-5, 70000], [0, 65535]], np.int32))
    assert square(picture, channels=1, image_size=2)[0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("turn", [1, 6])
def test_report_pages_convert_16_bit_images_like_the_data(tmp_path, turn):
    values = samples(16, 12, 12)
    file = tmp_path / "grid.png"
    file.write_bytes(png(values, 16, GREY, transparent(int(values[0, 0])), orientation(turn)))
    (group,), problems = embedded([Group("x", [Grid(0, 0, file, None, "x")])])
    assert problems == []
    assert group.grids[0].data


def test_upright_size_uses_exif_at_the_end_of_the_file(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(png(samples(16, 7, 12), 16, GREY, after=[orientation(6)]))
    assert decode.upright_size(file) == (7, 12)


# -- text and colour profiles ---------------------------------------------------------------------


def texts(size):
    """Chunks of text and profile of this decompressed size."""
    plain, small = b"x" * size, zlib.compress(b"x" * size)
    return {
        "tEXt": (b"tEXt", b"parameters\0" + plain),
        "zTXt": (b"zTXt", b"parameters\0\0" + small),
        "iTXt": (b"iTXt", b"workflow\0\0\0\0\0" + plain),
        "packed iTXt": (b"iTXt", b"workflow\0\1\0\0\0" + small),
        "iCCP": (b"iCCP", b"printer\0\0" + small),
    }


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", texts(0))
def test_large_texts_and_profiles_are_accepted(tmp_path, kind, where):
    chunk = texts(5_000_000)[kind]
    values = samples(8, 12, 12)
    before, after = ([chunk], []) if where == "before" else ([], [chunk])
    file = tmp_path / "x.png"
    file.write_bytes(png(values, 8, GREY, *before, after=after))
    assert (square(decode.open_image(file), channels=1)[0] == values).all()


@pytest.mark.parametrize("kind", ["zTXt", "packed iTXt", "iCCP"])
def test_text_chunks_have_a_limit(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100_000)
    file = tmp_path / "x.png"
    file.write_bytes(png(samples(8, 12, 12), 8, GREY, texts(200_000)[kind]))
    with pytest.raises(decode.Unreadable, match="more than 64 MB of text or colour profile"):
        decode.open_image(file)


def test_pillow_uses_our_limit_of_text_chunks():
    assert PngImagePlugin.MAX_TEXT_CHUNK == PngImagePlugin.MAX_TEXT_MEMORY == decode.MAX_TEXT
