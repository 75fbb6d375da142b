"""Images to pixels of one size: decoding, turning upright, resizing and cropping, with Pillow and numpy alone.

The result is what the evaluation transforms of torchvision, timm and open_clip give before they scale and normalize.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image

from finetuner.excepts import DataError
from finetuner.inference.preprocessing import Modality

MAX_PIXELS = 64_000_000
MAX_BYTES = 64 << 20

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resize = Literal['shortest', 'squash']
Interpolation = Literal['nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos']

# those that are decoded by Pillow itself; others start programs or hold more than pictures
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'DIB', 'TIFF', 'MPO', 'JPEG2000', 'AVIF', 'PPM', 'ICO')
_DEEP = ('I', 'F')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_THREADS = 8
_IN_FLIGHT = 256_000_000  # pixels that all threads of a process decode at a time, at most


class _Allowance:
    """What threads share; each takes a part, waits if too little is left, and gives it back."""

    def __init__(self, total: int):
        self._total = self._left = total
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._total)  # what is larger than all goes alone
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_pixels = _Allowance(_IN_FLIGHT)


@dataclass(frozen=True)
class ImageSettings:
    """How a model wants its images.

    :param size: height and width of the result, or one number for both.
    :param resize: `shortest`: the image just covers `resize_size`, its ratio stays. `squash`: it becomes `resize_size`,
        its ratio is lost. Either way the centre of `size` is cut out then.
    :param resize_size: height and width, or one number for both; default `size`.
    :param interpolation: by the name it has in Pillow.
    :param mean: of each channel, in units of 0 to 1. Subtracted by the encoder, not here.
    :param std: by which the encoder divides then.
    :raises ValueError: one of them cannot be used; the message names it.
    """

    size: tuple[int, int] = (224, 224)
    resize: Resize = 'shortest'
    resize_size: tuple[int, int] | None = None
    interpolation: Interpolation = 'bilinear'
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise ValueError(f'resize is {self.resize!r}: it is one of {", ".join(get_args(Resize))}')
        if self.interpolation not in get_args(Interpolation):
            known = ', '.join(get_args(Interpolation))
            raise ValueError(f'interpolation is {self.interpolation!r}: it is one of {known}')
        size = pair('size', self.size)
        resize_size = size if self.resize_size is None else pair('resize_size', self.resize_size)
        mean, std = _channels('mean', self.mean), _channels('std', self.std)
        if min(std) <= 0:
            raise ValueError(f'std is {self.std!r}: it must be positive')
        # the class is frozen; these make one form of what may be written in several
        for name, value in {'size': size, 'resize_size': resize_size, 'mean': mean, 'std': std}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ImageSettings:
        """Settings by name. `crop_pct`, the share of the resized image that is kept, may stand for `resize_size`.

        :raises ValueError: a name is unknown or a value cannot be used.
        """
        content = dict(content)
        crop_pct = content.pop('crop_pct', None)
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(content) - set(known)):
            raise ValueError(f'unknown settings of images {", ".join(unknown)}: known are {", ".join(known)}, crop_pct')
        if crop_pct is not None and content.get('resize_size') is None:
            if not isinstance(crop_pct, (int, float)) or not 0 < crop_pct <= 1:
                raise ValueError(f'crop_pct is {crop_pct!r}: it is a number above 0 and at most 1')
            sides = pair('size', content.get('size', cls.size))
            content['resize_size'] = tuple(math.floor(side / crop_pct) for side in sides)
        return cls(**content)

    def changed(self, changes: Mapping[str, Any]) -> ImageSettings:
        """With some settings replaced. A new `size` alone keeps the share of the image that is cut out.

        :param changes: as :meth:`from_dict` takes them.
        """
        content = {**self.to_dict(), **changes}
        if 'size' in changes and changes.get('resize_size') is None:
            content['resize_size'] = None
            content.setdefault('crop_pct', self.size[0] / (self.resize_size or self.size)[0])
        elif 'crop_pct' in changes:
            content['resize_size'] = None
        return self.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class ImagePreprocessor:
    """Content to pixels.

    :param settings: of the model.
    :param max_pixels: larger images are refused before they are decoded.
    :param max_bytes: larger files are refused before they are read.
    """

    modality: Modality = 'image'

    def __init__(self, settings: ImageSettings | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES):
        self.settings = settings or ImageSettings()
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        Image.init()
        self._formats = [name for name in _FORMATS if name in Image.OPEN]

    @property
    def digest(self) -> str:
        settings = {name: value for name, value in self.settings.to_dict().items() if name not in ('mean', 'std')}
        return hashlib.sha256(json.dumps(['image', settings], sort_keys=True).encode()).hexdigest()

    def features(self, contents: Sequence[Any]) -> list[np.ndarray]:
        """Pixels of one size, uint8 [H, W, 3].

        :param contents: of each image the bytes of its file, the path of its file, or its pixels: uint8 [H, W, 3],
            [H, W, 4] with alpha, or [H, W] without colour.
        :raises DataError: one cannot be read; the message names its position and the reason.
        """
        numbered = list(enumerate(contents))
        workers = min(_THREADS, os.cpu_count() or 1, len(numbered))
        if workers < 2:
            return [self._prepare(item) for item in numbered]
        pool = ThreadPoolExecutor(workers)  # Pillow lets other threads run while it decodes and resizes
        try:
            return list(pool.map(self._prepare, numbered))
        finally:
            pool.shutdown(cancel_futures=True)

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """`pixels`, uint8 [B, H, W, 3]."""
        return {'pixels': np.stack(rows) if len(rows) else np.empty((0, *self.settings.size, 3), np.uint8)}

    def _prepare(self, item: tuple[int, Any]) -> np.ndarray:
        position, content = item
        try:
            if isinstance(content, np.ndarray):
                return self._resize(self._open_array(content))
            return self._open(content)
        except DataError as error:
            raise DataError(f'item {position} {error}') from None
        except MemoryError as error:
            raise DataError(f'item {position} is too large for the memory of this machine') from error
        except Exception as error:  # a broken file may raise anything in Pillow
            raise DataError(f'item {position} ({_shown(content)}) cannot be decoded: {error}') from error

    def _open(self, content: Any) -> np.ndarray:
        shown = _shown(content)
        with io.BytesIO(self._read(content)) as file:
            try:
                image = Image.open(file, formats=self._formats)
            except Image.UnidentifiedImageError:
                known = ', '.join(self._formats)
                raise DataError(f'({shown}) is not an image: readable are {known}') from None
            except Image.DecompressionBombError as error:
                raise DataError(f'({shown}) has more pixels than the limit of {self.max_pixels}') from error
            self._check_pixels(image.width, image.height, shown)
            # a file of some kB may hold the most pixels there may be: a few at a time would fill the memory
            with _pixels.take(image.width * image.height):
                image.load()
                return self._resize(_to_rgb(_upright(image)))

    def _read(self, content: Any) -> bytes:
        if isinstance(content, (bytes, bytearray, memoryview)):
            size = len(content)
            if not size:
                raise DataError('is empty: it has no bytes')
            if size > self.max_bytes:
                raise DataError(f'has {size} bytes: the limit is {self.max_bytes}')
            return bytes(content)
        if not isinstance(content, (str, Path)):
            raise DataError(f'is not an image but {type(content).__name__}: give bytes, a path or an array')
        shown = _shown(content)
        if '://' in str(content) or str(content).startswith('data:'):
            raise DataError(f'({shown}) is a URL: fetch it first, this takes paths of files')
        path = Path(content).expanduser()
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= self.max_bytes:
                return path.read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f'({shown}) cannot be read: {getattr(error, "strerror", None) or error}') from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f'({shown}) is not a file')
        raise DataError(f'({shown}) has {status.st_size} bytes: the limit is {self.max_bytes}')

    def _open_array(self, array: np.ndarray) -> Image.Image:
        if array.dtype != np.uint8:
            raise DataError(f'is an array of {array.dtype}: pixels are uint8, 0 to 255')
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
            shape = ' × '.join(map(str, array.shape))
            raise DataError(f'is an array of shape {shape}: an image is height × width × 3')
        self._check_pixels(array.shape[1], array.shape[0], 'array')
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))

    def _check_pixels(self, width: int, height: int, shown: str) -> None:
        if width * height > self.max_pixels:
            raise DataError(f'({shown}) has {width} × {height} pixels: the limit is {self.max_pixels}')

    def _resize(self, image: Image.Image) -> np.ndarray:
        height, width = self.settings.resize_size or self.settings.size
        if self.settings.resize == 'shortest':
            width, height = _cover(*image.size, width, height)
            self._check_pixels(width, height, 'after resizing')
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.settings.interpolation.upper()])
        return _crop(np.asarray(image), *self.settings.size)


def _cover(width: int, height: int, least_width: int, least_height: int) -> tuple[int, int]:
    if least_width != least_height:  # as timm, which rounds
        ratio = min(width / least_width, height / least_height)
        return round(width / ratio), round(height / ratio)
    if width <= height:  # as torchvision, which cuts off
        return least_width, int(least_width * height / width)
    return int(least_width * width / height), least_width


def _crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre, filled up with black where the image is smaller. At odd differences half to even, as torchvision."""
    missing = max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)
    if any(missing):
        before = [side // 2 for side in missing]
        pixels = np.pad(pixels, [(first, side - first) for first, side in zip(before, missing, strict=True)] + [(0, 0)])
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent shows a white ground."""
    if image.mode == 'RGB' and 'transparency' not in image.info:
        return image
    if image.mode in _DEEP or image.mode.startswith('I;16'):
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode)).convert('RGB')
    if image.mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        ground = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(ground, image).convert('RGB')
    return image.convert('RGB')


def _to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of more than 8 bits to 8. Floats count from 0 to 1 if none is larger; 32 bits hold 8, 16 or 32."""
    values = np.nan_to_num(values.astype(np.float64))
    largest = values.max(initial=0)
    if mode == 'F' and largest <= 1:
        values = values * 255
    elif mode.startswith('I;16') or 255 < largest <= 65535:
        values = values / 257
    elif largest > 65535:
        values = values * (255 / (2**32 - 1))
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; those that cannot be read say nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF data may raise anything in Pillow
        orientation = None
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def pair(name: str, value: Any) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f'{name} is {value!r}: it is a positive integer, or two for height and width')
    return sides[0], sides[1]


def _channels(name: str, value: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(channel) for channel in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name} is {value!r}: it has three numbers, for red, green and blue') from error
    return red, green, blue


def _shown(content: Any) -> str:
    if isinstance(content, (str, Path)):
        text = str(content)
        return text if len(text) <= 200 else text[:200] + '…'
    return f'{len(content)} bytes' if isinstance(content, (bytes, bytearray, memoryview)) else type(content).__name__
