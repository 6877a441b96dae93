"""Every kind of picture file becomes the same upright RGB, or a plain refusal."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from tokenflow.tokenizer import processing


def gradient(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)], -1)
    rgb = np.concatenate([rgb, np.full((height, width, 1), 90)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def as_file(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("case", ["recon_metrics_0", "recon_metrics_1"])
def test_crops_are_the_recorded_ones(golden, case):
    case = golden(case)
    picture = Image.fromarray(case["in/image_hwc"].numpy())
    size, seed = case.meta["crop"], case.meta["seed"]
    centre = pixels(processing.center_crop(picture, size))
    somewhere = pixels(processing.random_crop(picture, size, random.Random(seed)))
    assert np.array_equal(centre, case["out/center_crop"])
    assert np.array_equal(somewhere, case["out/random_crop"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_bytes_of_a_decoded_picture_are_the_recorded_ones(golden, number):
    case = golden(f"recon_metrics_{number}")
    made = processing.to_uint8(case["in/model_output"])
    assert torch.equal(made[0].permute(1, 2, 0), case["out/sample_u8"])


def test_understanding_preparation_is_the_recorded_one(golden):
    case = golden("i2t_pieces_0")
    picture = Image.fromarray(case["in/image_hwc"].numpy())
    square = pixels(processing.pad_to_square(picture))
    assert np.array_equal(square, case["out/expand2square"])
    for resize in ("pad", "squash"):
        made = processing.to_batch(picture, 384, resize)[..., ::8, ::8]
        recorded = case[f"out/processed_{resize}"]
        torch.testing.assert_close(made, recorded, atol=1e-6, rtol=0)


def test_every_byte_survives_the_way_there_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([values] * 3, -1))
    batch = processing.to_tensor(picture)[None]
    assert batch.min() == -1 and batch.max() == 1
    assert np.array_equal(pixels(processing.to_pil(batch)[0]), np.asarray(picture))


def test_uint8_floors_and_clamps():
    values = torch.tensor([-2.0, -1.0, -128 / 127.5, 0.0, 0.99, 1.0, 2.0])
    assert processing.to_uint8(values).tolist() == [0, 0, 0, 128, 254, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient(20, 30)
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = processing.open_image(as_file(stored, "PNG", exif=exif))
    assert np.array_equal(pixels(read), np.asarray(upright))


def test_transparency_is_laid_on_white():
    layer = Image.new("RGBA", (3, 1))
    layer.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)])
    read = pixels(processing.open_image(as_file(layer, "PNG")))
    assert read[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]


def test_grey_with_transparency_is_laid_on_white():
    layer = Image.new("LA", (2, 1))
    layer.putdata([(40, 255), (40, 0)])
    read = pixels(processing.open_image(as_file(layer, "PNG")))
    assert read[0].tolist() == [[40] * 3, [255] * 3]


def test_palette_with_a_transparent_colour():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    plain = pixels(processing.open_image(as_file(picture, "PNG")))
    assert plain[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    clear = pixels(processing.open_image(as_file(picture, "PNG", transparency=1)))
    assert clear[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    picture = gradient(9, 7).convert(mode)
    read = processing.open_image(as_file(picture, "TIFF"))
    assert np.array_equal(pixels(read), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_brightness(kind):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    read = processing.open_image(as_file(Image.fromarray(values), kind))
    assert pixels(read)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_floating_point_pictures_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        processing.to_rgb(Image.new("F", (2, 2)))


def test_numbers_beyond_16_bits_are_refused():
    with pytest.raises(ValueError, match=r"16-bit values.*got 0 to 70000"):
        values = np.array([[0, 70000]], dtype=np.int32)
        processing.to_rgb(Image.fromarray(values))


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "half.jpg"
    whole = as_file(gradient(200, 200), "JPEG").getvalue()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg.*truncated"):
        processing.open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_a_damaged_file_is_a_value_error_in_any_format(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    whole = as_file(gradient(40, 50), kind).getvalue()
    path, damage, refused = tmp_path / "damaged", random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(4):
            content[damage.randrange(len(content))] = damage.randrange(256)
        path.write_bytes(content)
        try:
            processing.open_image(path)
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no pixels here")
    with pytest.raises(ValueError, match=r"notes\.txt must be a picture"):
        processing.open_image(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        processing.open_image(tmp_path / "gone.png")


@pytest.mark.parametrize("size", [(12000, 12000), (40000, 40000)], ids=str)
def test_a_decompression_bomb_is_refused_unopened(tmp_path, size):
    path = tmp_path / "bomb.png"
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0), b"IDAT"]
    file = b"\x89PNG\r\n\x1a\n"  # a few bytes that promise gigabytes
    for chunk in chunks:
        file += struct.pack(">I", len(chunk) - 4) + chunk
        file += struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(file)
    with pytest.raises(ValueError, match=r"bomb\.png must have at most 100,000,000"):
        processing.open_image(path)


def test_a_strip_is_refused():
    with pytest.raises(ValueError, match=r"100 times longer.*got 5000×1"):
        processing.to_batch(Image.new("RGB", (5000, 1)), 64)


@pytest.mark.parametrize("resize", processing.RESIZES)
def test_a_long_picture_within_bounds_is_handled(resize):
    batch = processing.to_batch(gradient(2, 200), 64, resize)
    assert batch.shape == (1, 3, 64, 64) and batch.abs().max() <= 1


def test_crop_takes_the_centre_of_a_rectangle():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    colours = processing.center_crop(picture, 50).getcolors()
    assert max(colours)[1] == (0, 0, 255)
    assert processing.center_crop(picture, (40, 90)).size == (90, 40)


def test_pad_keeps_everything_and_adds_grey():
    made = pixels(processing.pad_to_square(Image.new("RGB", (2, 5), "red")))
    assert made.shape == (5, 5, 3)
    assert made[0].tolist() == [[127] * 3] + [[255, 0, 0]] * 2 + [[127] * 3] * 2


def test_all_kinds_of_input_give_one_batch():
    picture = gradient(70, 90)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = processing.to_batch(picture, 32)
    assert expected.dtype == torch.float32 and expected.shape == (1, 3, 32, 32)
    for same in (array, array[None], tensor, tensor[None], [picture], (array,)):
        assert torch.equal(processing.to_batch(same, 32), expected)
    two = processing.to_batch([picture, tensor], 32)
    assert torch.equal(two, expected.repeat(2, 1, 1, 1))
    grey = processing.to_batch(array[..., 0], 32)
    assert torch.equal(grey[:, 0], grey[:, 1])


def test_float_tensors_are_taken_as_they_are():
    images = torch.rand(2, 3, 24, 40) * 2 - 1
    assert processing.to_batch(images, 64) is images
    assert processing.to_batch(images[0], 64).shape == (1, 3, 24, 40)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one picture"),
        ("a.png", TypeError, "got str"),
        (np.zeros((4, 4, 3)), TypeError, "numpy array must be uint8, got float64"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\[H, W, 3\].*\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "must not be empty"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"got \[4, 4, 3\]"),
        (torch.zeros(1, 4, 4), ValueError, r"got \[1, 4, 4\]"),
        (torch.full((3, 4, 4), 255.0), ValueError, "values up to 255; pass uint8"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 8)], ValueError, "one shape"),
    ],
)
def test_wrong_input_is_told_what_came(images, error, message):
    with pytest.raises(error, match=message):
        processing.to_batch(images, 16)


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(ValueError, match=r"crop.*got 'stretch'"):
        processing.to_batch(gradient(4, 4), 16, "stretch")


@pytest.mark.parametrize("size", [0, -8, 64.0, (64,), (64, 0), "64"], ids=repr)
@pytest.mark.parametrize("resize", processing.RESIZES)
def test_a_size_that_is_none_is_refused(size, resize):
    with pytest.raises(ValueError, match="size must be a side or"):
        processing.to_batch(gradient(4, 4), size, resize)
