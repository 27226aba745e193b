import numpy as np
import pytest
from PIL import Image

from adbench.data.images import decode, decode_mask
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
