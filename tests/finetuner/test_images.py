"""Images to pixels: as the libraries' own transforms make them, whatever the file, and never more than the limits."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

import finetuner.inference.images
from finetuner.excepts import DataError
from finetuner.inference.images import ImagePreprocessor, ImageSettings, _Allowance

SIZES = [(160, 213), (213, 160), (97, 31), (31, 98), (64, 64), (640, 427), (20, 21), (300, 301)]


def picture(width=80, height=60, mode='RGB', seed=0):
    """A picture with smooth and sharp parts."""
    chance = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([x, y, (x * 9 % 1 > 0.5)], -1) * 200 + chance.uniform(0, 55, (height, width, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    return image if mode == 'RGB' else image.convert(mode)


def file_of(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(content, **settings):
    """The pixels of one image, in the size that it has by then."""
    (pixels,) = ImagePreprocessor(ImageSettings(**settings)).features([content])
    return pixels


def same_size(image):
    return {'size': (image.height, image.width)}


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(('size', 'resize_size'), [(64, 73), (65, 72), (48, 48)])
def test_it_equals_torchvision(interpolation, size, resize_size):
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    transform = transforms.Compose(
        [transforms.Resize(resize_size, mode), transforms.CenterCrop(size), transforms.PILToTensor()]
    )
    images = [picture(*sides) for sides in SIZES]
    settings = ImageSettings(size=size, resize_size=resize_size, interpolation=interpolation)
    found = ImagePreprocessor(settings).features([file_of(image) for image in images])
    for image, pixels in zip(images, found, strict=True):
        np.testing.assert_array_equal(pixels, transform(image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize('crop_mode', ['center', 'squash'])
@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
def test_it_equals_timm(crop_mode, size):
    from timm.data import create_transform

    transform = create_transform(
        (3, *size), crop_pct=0.9, crop_mode=crop_mode, interpolation='bicubic', mean=(0, 0, 0), std=(1, 1, 1)
    )
    settings = ImageSettings.from_dict(
        {
            'size': list(size),
            'crop_pct': 0.9,
            'interpolation': 'bicubic',
            'resize': 'squash' if crop_mode == 'squash' else 'shortest',
        }
    )
    for sides in SIZES:
        expected = np.rint(transform(picture(*sides)).permute(1, 2, 0).numpy() * 255)
        np.testing.assert_array_equal(pixels_of(file_of(picture(*sides)), **vars(settings)), expected)


def test_images_smaller_than_the_crop_get_black_borders():
    image = picture(10, 30)
    pixels = pixels_of(file_of(image), size=40, resize_size=20)
    assert pixels.shape == (40, 40, 3)
    assert not pixels[:, :10].any()
    assert not pixels[:, 30:].any()
    assert pixels[:, 10:30].any()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_upright(orientation):
    image = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(image, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(pixels_of(content, size=expected.shape[:2]), expected)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_broken_exif_data_turn_nothing():
    image = picture(40, 30)
    content = file_of(image, 'JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    assert pixels_of(content, **same_size(image)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ('mode', 'kind'),
    [
        *[(mode, 'PNG') for mode in ('L', '1', 'P')],
        *[(mode, 'JPEG') for mode in ('L', 'CMYK')],
        *[(mode, 'TIFF') for mode in ('1', 'P', 'CMYK', 'YCbCr')],
        ('P', 'GIF'),
        ('L', 'BMP'),
        ('RGB', 'WEBP'),
    ],
)
def test_every_kind_becomes_rgb(mode, kind):
    image = picture(24, 16, mode)
    content = file_of(image, kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))
    np.testing.assert_array_equal(pixels_of(content, **same_size(image)), expected)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'palette'])
def test_what_is_transparent_is_white(mode):
    image = Image.new('RGBA', (8, 8), (200, 0, 0, 0))
    image.paste((0, 0, 90, 255), (0, 0, 8, 4))
    options = {}
    if mode == 'palette':
        image = Image.new('P', (8, 8), 0)
        image.putpalette([255, 0, 0, 0, 0, 90])
        image.paste(1, (0, 0, 8, 4))
        options = {'transparency': 0}
    elif mode == 'LA':
        image = image.convert('LA')
    pixels = pixels_of(file_of(image, **options), size=8)
    assert (pixels[4:] == 255).all()
    assert (pixels[:4].max(-1) < 100).all()


def test_half_transparent_is_mixed_with_white():
    assert (abs(pixels_of(file_of(Image.new('RGBA', (4, 4), (0, 0, 0, 128))), size=4).astype(int) - 127) <= 1).all()


def test_grey_of_16_bits():
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = pixels_of(file_of(Image.fromarray(values)), size=8)
    np.testing.assert_array_equal(pixels, np.repeat(np.rint(values / 257)[..., None], 3, -1))
    dark = np.full((8, 8), 200, np.uint16)  # nearly black, though 200 would be light in 8 bits
    assert pixels_of(file_of(Image.fromarray(dark)), size=8).max() == 1


def test_grey_in_floats():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for scale in (1, 255):
        pixels = pixels_of(file_of(Image.fromarray(values * np.float32(scale)), 'TIFF'), size=8)
        np.testing.assert_array_equal(pixels[..., 0], np.rint(values * 255))


def test_bytes_paths_and_arrays_give_the_same(tmp_path):
    image = picture(30, 20)
    (tmp_path / 'a picture.png').write_bytes(file_of(image))
    path = tmp_path / 'a picture.png'
    preprocessor = ImagePreprocessor(ImageSettings(size=16))
    contents = [path.read_bytes(), bytearray(path.read_bytes()), path, str(path), np.asarray(image)]
    first, *others = preprocessor.features(contents)
    assert (first.shape, first.dtype) == ((16, 16, 3), np.uint8)
    for other in others:
        np.testing.assert_array_equal(other, first)
    grey = np.asarray(picture(30, 20, 'L'))
    np.testing.assert_array_equal(*preprocessor.features([grey, grey[:, :, None]]))


def test_a_batch():
    preprocessor = ImagePreprocessor(ImageSettings(size=(12, 16)))
    rows = preprocessor.features([np.asarray(picture(seed=seed)) for seed in range(5)])
    pixels = preprocessor.collate(rows)['pixels']
    assert (pixels.shape, pixels.dtype) == ((5, 12, 16, 3), np.uint8)
    assert preprocessor.collate([])['pixels'].shape == (0, 12, 16, 3)
    assert preprocessor.features([]) == []


def test_many_threads_keep_the_order(monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    contents = [np.full((9, 9, 3), value, np.uint8) for value in range(200)]
    found = ImagePreprocessor(ImageSettings(size=8)).features(contents)
    assert [row[0, 0, 0] for row in found] == list(range(200))


def test_threads_decode_a_limited_number_of_pixels_at_a_time(monkeypatch):
    """Eight images of 4800 pixels where 10,000 may be decoded at a time; one of more than that goes alone."""
    now = most = 0
    lock, load = threading.Lock(), ImageFile.ImageFile.load

    def slow(image):
        nonlocal now, most
        pixels = image.width * image.height
        with lock:
            now += pixels
            most = max(most, now)
        time.sleep(0.02)
        try:
            return load(image)
        finally:
            with lock:
                now -= pixels

    monkeypatch.setattr('finetuner.inference.images._pixels', _Allowance(10_000))
    monkeypatch.setattr(finetuner.inference.images.os, 'cpu_count', lambda: 8)
    files = [file_of(picture(seed=seed), 'JPEG') for seed in range(8)]
    expected = ImagePreprocessor().features(files)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', slow)
    for one, two in zip(ImagePreprocessor().features(files), expected, strict=True):
        assert np.array_equal(one, two)
    assert 4800 < most <= 10_000
    assert len(ImagePreprocessor().features([file_of(picture(200, 100), 'JPEG'), *files])) == 9
    with pytest.raises(DataError, match='item 0'):
        ImagePreprocessor().features([truncated()] * 3)
    assert len(ImagePreprocessor().features(files)) == 8  # what failed gave its part back


def truncated():
    return file_of(picture(300, 200), 'JPEG')[:2000]


def bomb():
    """A small PNG that says it is huge."""
    header = struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    packed = [
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


@pytest.mark.parametrize(
    ('bad', 'match'),
    [
        (b'', 'item 1 is empty'),
        (b'no image at all', r'item 1 \(15 bytes\) is not an image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'is not an image'),
        (truncated(), 'item 1 .* cannot be decoded: .*truncated'),
        (bomb(), 'item 1 .* pixels.* limit'),
        (np.zeros((2001, 2000, 3), np.uint8), r'item 1 \(array\) has 2000 × 2001 pixels: the limit is 4000000'),
        (np.zeros((1, 9999, 3), np.uint8), r'item 1 \(after resizing\) has .* pixels'),
        (np.zeros((9, 9, 3), np.float32), 'item 1 is an array of float32: pixels are uint8'),
        (np.zeros((3, 9, 9), np.uint8), 'item 1 is an array of shape 3 × 9 × 9'),
        (np.zeros((0, 9, 3), np.uint8), 'item 1 is an array of shape 0 × 9 × 3'),
        (bytes(200_001), 'item 1 has 200001 bytes: the limit is 200000'),
        ('no/such.png', r'item 1 \(no/such.png\) cannot be read: No such file'),
        ('/tmp', r'item 1 \(/tmp\) is not a file'),
        ('/dev/zero', 'item 1 .* is not a file'),
        ('\0', 'item 1 .* cannot be read'),
        ('https://example.org/a.png', r'item 1 \(https://example.org/a.png\) is a URL'),
        ('data:image/png;base64,AAAA', 'item 1 .* is a URL'),
        (None, 'item 1 is not an image but NoneType'),
        (3, 'item 1 is not an image but int'),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(bad, match):
    preprocessor = ImagePreprocessor(ImageSettings(size=64), max_pixels=4_000_000, max_bytes=200_000)
    with pytest.raises(DataError, match=match):
        preprocessor.features([file_of(picture()), bad, file_of(picture())])


def test_files_larger_than_the_limit_are_not_read(tmp_path):
    (tmp_path / 'big.png').write_bytes(bytes(3000))
    with pytest.raises(DataError, match='big.png.* has 3000 bytes: the limit is 2000'):
        ImagePreprocessor(max_bytes=2000).features([tmp_path / 'big.png'])


def test_settings_survive_json():
    import json

    settings = ImageSettings(size=(32, 48), resize='squash', resize_size=(40, 60), mean=(0.5, 0.5, 0.5))
    assert ImageSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert ImageSettings.from_dict({}) == ImageSettings(size=224)


def test_changes_keep_the_share_that_is_cut_out():
    settings = ImageSettings(size=224, resize_size=256)
    assert settings.changed({'size': 112}).resize_size == (128, 128)
    assert settings.changed({'size': 112, 'crop_pct': 1.0}).resize_size == (112, 112)
    assert settings.changed({'size': 112, 'resize_size': 120}).resize_size == (120, 120)
    assert settings.changed({'crop_pct': 1}).resize_size == (224, 224)
    assert settings.changed({}) == settings


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        ({'size': 0}, 'size is 0'),
        ({'size': [1, 2, 3]}, 'size is'),
        ({'resize': 'stretch'}, "resize is 'stretch': it is one of shortest, squash"),
        ({'interpolation': 'magic'}, "interpolation is 'magic'"),
        ({'mean': [1, 2]}, 'mean is'),
        ({'std': [1, 0, 1]}, 'std is .* positive'),
        ({'crop_pct': 2}, 'crop_pct is 2'),
        ({'colour': 'red'}, 'unknown settings of images colour'),
    ],
)
def test_wrong_settings_are_named(wrong, match):
    with pytest.raises(ValueError, match=match):
        ImageSettings.from_dict(wrong)


def test_the_digest_tells_what_makes_other_pixels():
    def digest(**settings):
        return ImagePreprocessor(ImageSettings(**settings)).digest

    assert digest() == digest(size=(224, 224)) == digest(mean=(0.5, 0.5, 0.5))
    assert len({digest(), digest(size=200), digest(resize='squash'), digest(interpolation='bicubic')}) == 4
