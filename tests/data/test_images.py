import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from pictures import CARRIERS, GRID, ORIENTATION, chunk, colour, exif, in_mode, shape, with_chunk
from PIL import Image, ImageOps

from adbench.data import images
from adbench.data.images import Unreadable, decode, decode_mask, pixels_of, read_image, read_mask
from adbench.types import UserError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_give_the_bytes_that_were_saved(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOUR).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(decode(path), COLOUR)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_is_close_to_what_was_saved(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    smooth = np.stack([GREY // 4 + 64] * 3, axis=-1)
    Image.fromarray(smooth).save(path, quality=95)
    assert np.abs(decode(path).astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "F"])
def test_every_mode_becomes_three_channels_of_bytes(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(GREY.astype(np.float32) / 255)
    else:
        image = Image.fromarray(np.stack([GREY] * 3, axis=-1)).convert(mode)
    image.save(path)
    decoded = decode(path)
    assert decoded.shape == (16, 16, 3) and decoded.dtype == np.uint8
    if mode not in ("1", "P"):
        np.testing.assert_array_equal(decoded, np.stack([GREY] * 3, axis=-1))


def test_the_fast_png_reader_and_pillow_agree(tmp_path):
    for name, array in (("grey", GREY), ("colour", COLOUR)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            np.testing.assert_array_equal(decode(tmp_path / f"{name}.png"), np.asarray(image.convert("RGB")))


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    Image.fromarray(COLOUR[:8]).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").shape == (16, 8, 3)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped"])
def test_a_broken_image_is_named(tmp_path, damage):
    path = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "text": b"this is no image",
        "half": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"broken\.png"):
        decode(path)


def test_values_that_no_image_has_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 7.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*outside \[0, 1\]"):
        decode(tmp_path / "a.tif")


def test_a_mask_is_whatever_is_not_zero_in_a_lossless_file(tmp_path):
    Image.fromarray(np.array([[0, 1], [128, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    assert decode_mask(tmp_path / "m.png").tolist() == [[False, True], [True, True]]


def test_the_noise_around_zero_in_a_jpeg_mask_is_no_defect(tmp_path):
    wanted = np.zeros((32, 32), np.uint8)
    wanted[10:21, 11:22] = 255
    Image.fromarray(wanted).save(tmp_path / "m.jpg", quality=60)
    assert (decode_mask(tmp_path / "m.jpg") == (wanted > 0)).mean() > 0.98


def test_a_broken_mask_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"no mask")
    with pytest.raises(UserError, match=r"mask .*m\.png"):
        decode_mask(tmp_path / "m.png")


# -- turned as a person sees it ----------------------------------------------------------------------------------------


def bytes_of(image):
    """What an image of any mode shows, as (H, W, 3) uint8; the way there is Pillow's but for 16 bits and floats."""
    values = np.asarray(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.rint(values / 257 if image.mode != "F" else values * 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


@pytest.mark.parametrize(("carrier", "mode"), GRID)
def test_every_orientation_in_every_format_and_mode_is_what_exif_transpose_gives(tmp_path, carrier, mode):
    save, suffix, _ = CARRIERS[carrier]
    upright = set()
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}{suffix}"
        save(path, in_mode(colour(), mode), orientation)
        # From memory: what Pillow maps from a file, an uncompressed TIFF, it turns wrongly.
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            wanted = bytes_of(ImageOps.exif_transpose(file))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(decode(path), wanted)
            with Image.open(path) as file:
                np.testing.assert_array_equal(pixels_of(file), wanted)
        upright.add(wanted.tobytes())
        assert wanted.shape == ((6, 10, 3) if orientation < 5 else (10, 6, 3))
    assert len(upright) == 8  # the oracle turns each of them another way


@pytest.mark.parametrize(("carrier", "mode"), [(c, m) for c, m in GRID if m != "CMYK"])
def test_masks_are_turned_as_their_images_are(tmp_path, carrier, mode):
    save, suffix, _ = CARRIERS[carrier]
    mask = np.repeat(np.where(shape(24, 40), 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}{suffix}"
        save(path, in_mode(mask, mode), orientation)
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            wanted = bytes_of(ImageOps.exif_transpose(file))[..., 0] > 127
        found = decode_mask(path)
        assert found.shape == wanted.shape
        assert (found == wanted).mean() > (0.98 if "jpeg" in carrier or "webp xmp" in carrier else 0.9999)


def test_a_plain_png_takes_the_fast_way_and_one_that_could_be_turned_does_not(tmp_path, monkeypatch):
    taken = []
    original = images._by_rust
    monkeypatch.setattr(images, "_by_rust", lambda *a, **k: taken.append(a) or original(*a, **k))
    path = tmp_path / "a.png"
    Image.fromarray(colour()).save(path)
    plain = path.read_bytes()
    for extra in (b"pHYs" + bytes(9), b"tIME" + bytes(7), b"gAMA" + struct.pack(">I", 45455), b"tEXtAuthor\0me"):
        path.write_bytes(with_chunk(plain, extra[:4], extra[4:]))
        np.testing.assert_array_equal(decode(path), colour())
    assert len(taken) == 4
    for kind, content in (
        (b"tRNS", bytes(6)),
        (b"eXIf", exif(3)[6:]),
        (b"vpAg", bytes(9)),
        (b"tEXtexif\0"[:4], b"exif\0"),
    ):
        path.write_bytes(with_chunk(plain, kind, content))
        with Image.open(path) as file:
            np.testing.assert_array_equal(decode(path), np.asarray(ImageOps.exif_transpose(file).convert("RGB")))
    assert len(taken) == 4


def test_an_interlaced_png_is_read_as_pillow_reads_it(tmp_path):
    # Pillow writes none: one pass of seven is a whole PNG of one pixel.
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    content = images.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\1\2\3")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    assert decode(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


# -- broken metadata ---------------------------------------------------------------------------------------------------


def negative_long(orientation):
    """EXIF whose orientation can be read and whose other tag cannot be written again (a negative LONG)."""
    entries = struct.pack("<HHII", ORIENTATION, 3, 1, orientation) + struct.pack("<HHIi", 0x0100, 9, 1, -5)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


BROKEN = {
    "nothing but a head": b"Exif\0\0II*\0",
    "no head": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
    "cut in an entry": exif(6)[:20],
    "offset outside": b"Exif\0\0II*\0" + struct.pack("<I", 9999),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_metadata_cost_no_pixel_and_name_the_file(tmp_path, suffix, what):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(colour(16, 16)).save(path, **({"lossless": True} if suffix == "webp" else {}))
    wanted = decode(path)
    content = path.read_bytes()
    if suffix == "png":
        path.write_bytes(with_chunk(content, b"eXIf", BROKEN[what][6:]))
    elif suffix == "jpg":
        path.write_bytes(
            content[:2] + b"\xff\xe1" + struct.pack(">H", len(BROKEN[what]) + 2) + BROKEN[what] + content[2:]
        )
    else:
        Image.open(path).save(path, exif=BROKEN[what], lossless=True)
    if what == "empty":  # says nothing, so nothing is lost
        np.testing.assert_array_equal(decode(path), wanted)
        return
    with pytest.warns(UserWarning, match=rf"broken\.{suffix}.*broken metadata"):
        found = decode(path)
    np.testing.assert_array_equal(found, wanted)
    assert read_mask(path).odd == [("broken_metadata", "")]
    with pytest.warns(UserWarning, match="broken metadata"), Image.open(path) as file:
        np.testing.assert_array_equal(pixels_of(file), wanted)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_that_can_be_read_counts_whatever_else_is_broken(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colour()).save(path, exif=negative_long(6), **({"lossless": True} if suffix == "webp" else {}))
    assert read_image(path).pixels.shape == (10, 6, 3)
    assert decode_mask(path).shape == (10, 6)


@pytest.mark.parametrize(
    "orientation", [b"six\0", bytes(4), b"\x09\0\0\0", b"\xff\0\0\0"], ids=["text", "0", "9", "255"]
)
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation):
    kind = (2, 4) if orientation == b"six\0" else (3, 1)  # text, or one number
    entry = struct.pack("<HHI", ORIENTATION, *kind) + orientation
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    Image.fromarray(colour()).save(tmp_path / "a.png", exif=content)
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), colour())


def test_chunks_and_segments_that_stop_a_decoder_are_taken_out(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(colour()).save(path)
    plain = path.read_bytes()
    wrong = bytearray(chunk(b"tEXt", b"Author\0me"))
    wrong[-1] ^= 255  # its checksum
    for broken in (plain[:33] + bytes(wrong) + plain[33:], with_chunk(plain, b"zTXt", b"x" * 90)):
        path.write_bytes(broken)
        found = read_image(path)
        np.testing.assert_array_equal(found.pixels, colour())
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(colour()).save(jpeg)
    content = jpeg.read_bytes()
    wanted = decode(jpeg)
    jpeg.write_bytes(content[:2] + b"\xff\xe1\x00\x20Exif\0\0" + bytes(24) + content[2:])
    np.testing.assert_array_equal(read_image(jpeg).pixels, wanted)


def test_a_tiff_whose_metadata_stop_pillow_is_read_and_turned(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    Image.fromarray(colour()).save(path, tiffinfo={ORIENTATION: 6})
    wanted = decode(path)
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda *a, **k: (_ for _ in ()).throw(struct.error("out of range")))
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, wanted)
    assert found.odd == [("broken_metadata", "")]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif", "ppm"])
def test_whatever_is_wrong_with_a_file_one_message_names_it(tmp_path, suffix):
    """Bytes changed at random: an image comes back, or the one error that names the file."""
    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(colour(32, 32)).save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(min(len(content), 200))] = rng.randrange(256)
        path.write_bytes(bytes(content[: rng.randrange(1, len(content) + 1)] if rng.random() < 0.3 else content))
        for read in (read_image, read_mask):
            try:
                assert read(path, max_pixels=100_000).pixels.shape[0] > 0
            except UserError as error:
                assert f"damaged.{suffix}" in str(error)


def test_a_link_to_nothing_and_a_file_of_another_kind_say_so(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(Unreadable, match=r"link\.png: a link to a file that is not there"):
        decode(tmp_path / "link.png")
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(Unreadable, match=r"page\.png: it is no PNG, JPEG"):
        decode(tmp_path / "page.png")


# -- masks go by colour ------------------------------------------------------------------------------------------------

WHITE_BLACK = [255, 255, 255, 0, 0, 0]


def palette_mask(colours):
    """The shape as numbers 0 and 1 of a palette."""
    image = Image.frombytes("P", shape().shape[::-1], shape().astype(np.uint8).tobytes())
    image.putpalette(colours)
    return image


def test_a_palette_mask_goes_by_its_colours_not_its_numbers(tmp_path):
    for name, colours, wanted in (
        ("ink", WHITE_BLACK, ~shape()),
        ("usual", [0, 0, 0, 128, 0, 0], shape()),
        ("all white", [255] * 6, np.ones_like(shape())),
    ):
        for suffix in ("png", "gif", "bmp", "tif"):
            path = tmp_path / f"{name}.{suffix}"
            palette_mask(colours).save(path)
            np.testing.assert_array_equal(decode_mask(path), wanted, err_msg=str(path))
    palette_mask([0] * 6).save(tmp_path / "black.png")
    with pytest.raises(UserError, match=r"black\.png.*palette numbers alone differ"):
        decode_mask(tmp_path / "black.png")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16", "I", "F"])
def test_a_mask_of_zeros_and_ones_is_read_in_every_lossless_mode(tmp_path, mode):
    ones = shape().astype(np.uint8)
    arrays = {"I;16": ones.astype(np.uint16), "I": ones.astype(np.int32), "F": ones.astype(np.float32),
              "RGB": np.repeat(ones[..., None], 3, axis=-1), "1": shape(), "L": ones}  # fmt: skip
    for suffix in {"I": ("tif",), "F": ("tif",), "RGB": ("png", "tif", "bmp", "webp", "ppm")}.get(mode, ("png", "tif")):
        path = tmp_path / f"{mode[0]}.{suffix}"
        Image.fromarray(arrays[mode]).save(path, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(decode_mask(path), shape(), err_msg=str(path))


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("webp", {"quality": 80})])
def test_a_lossy_mask_is_read_above_half_or_refused_by_name(tmp_path, suffix, options):
    path = tmp_path / f"m.{suffix}"
    big = np.kron(shape(), np.ones((16, 16), np.uint8))
    Image.fromarray(big * 255).save(path, **options)
    assert (decode_mask(path) == big).mean() > 0.99
    Image.fromarray(big * 0).save(path, **options)
    assert not decode_mask(path).any()
    for value in (1, 3, 60, 100):
        Image.fromarray(big * value).save(path, **options)
        with pytest.raises(UserError, match=rf"m\.{suffix}.*brightest value is .* save the mask as PNG"):
            decode_mask(path)


def test_a_tiff_with_jpeg_inside_counts_as_lossy(tmp_path):
    big = np.kron(shape(), np.ones((16, 16), np.uint8))
    Image.fromarray(big * 255).save(tmp_path / "m.tif", compression="jpeg", quality=40)
    assert (decode_mask(tmp_path / "m.tif") == big).mean() > 0.99


def with_alpha(colours, alpha):
    return Image.fromarray(
        np.concatenate([np.broadcast_to(colours, (*shape().shape, 3)), alpha[..., None]], -1).astype(np.uint8)
    )


def test_what_cannot_be_seen_of_a_mask_is_normal(tmp_path):
    path, drawn = tmp_path / "m.png", shape() * 255
    white = np.repeat(drawn[..., None], 3, -1)
    with_alpha([255, 255, 255], drawn).save(path)  # white paint on nothing
    np.testing.assert_array_equal(decode_mask(path), shape())
    with_alpha(white, drawn).save(path)
    np.testing.assert_array_equal(decode_mask(path), shape())
    for alpha in (0, 255):  # alpha that is the same everywhere says nothing
        with_alpha(white, np.full(shape().shape, alpha)).save(path)
        np.testing.assert_array_equal(decode_mask(path), shape())
    with_alpha([0, 0, 0], drawn).save(path)
    with pytest.raises(UserError, match=r"m\.png.*all that can be seen in it is black"):
        decode_mask(path)
    Image.merge("LA", (Image.new("L", (10, 6), 200), Image.fromarray(drawn.astype(np.uint8)))).save(path)
    np.testing.assert_array_equal(decode_mask(path), shape())


def test_a_mask_with_values_that_are_no_numbers_is_refused(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(UserError, match=r"m\.tif.*no numbers"):
        decode_mask(tmp_path / "m.tif")


# -- depth, size, frames -----------------------------------------------------------------------------------------------


def deep_colour(values):
    """A PNG of 16-bit RGB, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return images.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_bits_say_what_is_white_in_a_file_of_16_bits(tmp_path):
    values = np.array([[0, 1000], [2047, 4095]], np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        assert decode(tmp_path / f"a.{suffix}", bits=12)[..., 0].tolist() == [[0, 62], [127, 255]]
        assert decode(tmp_path / f"a.{suffix}")[..., 0].tolist() == [[0, 4], [8, 16]]
        assert read_image(tmp_path / f"a.{suffix}").peak == 4095
        with pytest.raises(UserError, match=rf"a\.{suffix}: values outside 0\.\.1023 .*data\.bits=12"):
            decode(tmp_path / f"a.{suffix}", bits=10)
    assert pixels_of(Image.fromarray(values), bits=12)[1, 1].tolist() == [255] * 3
    (tmp_path / "colour.png").write_bytes(deep_colour(np.stack([values] * 3, axis=-1)))
    assert decode(tmp_path / "colour.png", bits=12)[..., 2].tolist() == [[0, 62], [127, 255]]
    assert read_image(tmp_path / "colour.png").odd == [("high_byte", "")]


def test_bits_change_nothing_in_files_that_say_their_depth(tmp_path):
    Image.fromarray(colour()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", bits=12), colour())
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([2048, 4095], ">u2").tobytes())
    assert (
        decode(tmp_path / "a.pgm", bits=12)[0, :, 0].tolist()
        == decode(tmp_path / "a.pgm")[0, :, 0].tolist()
        == [128, 255]
    )


def test_ones_in_a_colour_mask_of_16_bits_are_anomalous(tmp_path):
    (tmp_path / "m.png").write_bytes(deep_colour(np.repeat(shape()[..., None], 3, axis=-1).astype(np.uint16)))
    np.testing.assert_array_equal(decode_mask(tmp_path / "m.png"), shape())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif", "ppm"])
def test_one_limit_of_pixels_holds_in_every_format(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"large.{suffix}"
    Image.fromarray(colour(20, 30)).save(path)
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=rf"large\.{suffix}: 30x20 pixels .* limit of 599; data\.max_pixels=600"):
            read(path, max_pixels=599)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, at six times of which it refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(path, max_pixels=600).shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_large_image_is_copied_in_bands_and_is_the_same(tmp_path, monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    monkeypatch.setattr(images, "BAND", 100)
    for mode in ("RGB", "L", "1"):
        image = Image.fromarray(array).convert(mode)
        image.save(tmp_path / "a.tif")
        np.testing.assert_array_equal(decode(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_of_several_frames_the_first_is_read_and_the_file_named(tmp_path, suffix):
    path = tmp_path / f"many.{suffix}"
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    with pytest.warns(UserWarning, match=rf"many\.{suffix} is one of the files with several frames"):
        assert (decode(path) == 40).all()
