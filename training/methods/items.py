"""Where the contents of items come from: the sessions themselves, a folder, a web server, an S3 bucket.

A method's file, which is the operator's, says which; a session, which is a client's, says which file in there, and
nothing beyond: no path leads out of the folder, no URL to another server, no key to another bucket or prefix.
"""

from __future__ import annotations

from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import HTTPError
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator

from finetuner import settings
from finetuner.data.links import MAX_BYTES, Links
from finetuner.excepts import DataError
from registry.click_records import SearchResult
from training.errors import is_passing
from training.numbers import integers

Modality = Literal['text', 'image']


class AwayError(DataError):
    """An item cannot be read now: what holds it is away, or busy."""


class InlineItems(BaseModel):
    """The texts come with the sessions.

    :param fields: of a result's `meta`; those that are there are joined by line breaks.
    """

    model_config = ConfigDict(extra='forbid')

    loader: Literal['inline']
    fields: Annotated[list[str], Field(min_length=1)] = ['text']

    @property
    def modality(self) -> Modality:
        return 'text'

    def read(self, result: SearchResult) -> str:
        """:raises DataError: none of the fields is there."""
        meta = result.meta or {}
        parts = [_text(meta[name]) for name in self.fields if meta.get(name) is not None]
        if not (text := '\n'.join(part for part in parts if part)):
            raise DataError(f'meta has no {" or ".join(map(repr, self.fields))}')
        return text


class Files(BaseModel):
    """Items that are files somewhere.

    :param modality: what they hold: UTF-8 texts of 1 MiB at most, or images of 64 MiB at most.
    :param address: the name in a result's `meta` of where the file is; None: its object id says it.
    :param suffix: is added to the address, such as '.jpg'.
    """

    model_config = ConfigDict(extra='forbid')

    modality: Modality = 'text'
    address: str | None = None
    suffix: str = ''

    def read(self, result: SearchResult) -> bytes:
        """
        :raises AwayError: the file cannot be read now, and perhaps in a moment.
        :raises DataError: the address leads elsewhere, or the file cannot be read.
        """
        try:
            return self.fetch(self._place(result))
        except DataError as error:
            if _may_pass(error):
                raise AwayError(str(error)) from None
            raise

    def fetch(self, place: str) -> bytes:
        raise NotImplementedError(type(self).__name__)

    def _place(self, result: SearchResult) -> str:
        place = result.object_id if self.address is None else (result.meta or {}).get(self.address)
        if place is None or place == '':
            raise DataError(f'meta has no {self.address!r} that says where the file is')
        if not isinstance(place, str | int | float):
            raise DataError(f'meta has a {self.address!r} that is neither a text nor a number')
        return f'{integers(place)}{self.suffix}'


class FolderItems(Files):
    """Files below a folder.

    :param root: the folder; a relative one begins in `FINETUNER_HOME`.
    """

    loader: Literal['folder']
    root: Annotated[str, Field(min_length=1)]

    def fetch(self, place: str) -> bytes:
        root = (settings.home().expanduser() / Path(self.root).expanduser()).resolve()

        def check(path: Path) -> None:
            # one answer for all that lies outside, whether it exists or not
            if not path.is_relative_to(root):
                raise DataError('it names a file that is not below the folder of the items')

        if '://' in place or '\0' in place:
            raise DataError('it is no path')
        return Links(root, check, schemes=()).read(str(root / place), self.modality)


class WebItems(Files):
    """Files of a web server.

    :param base: the URL that all of them begin with.
    """

    loader: Literal['http']
    base: str = Field(pattern=r'^https?://[^/?#\s]+/([^?#\s]*/)?$')

    def fetch(self, place: str) -> bytes:
        # a place may be the whole URL as well, if it begins with the base
        path = unquote(place.removeprefix(self.base)) if place.startswith(self.base) else place
        url = self.base + quote(_checked_segments(path), safe='/')
        return Links(schemes=[self.base.partition(':')[0]]).rooted().read(url, self.modality)


class BucketItems(Files):
    """Objects of a bucket, of S3 or of what speaks its protocol. The keys to it are those of the environment
    (`AWS_ACCESS_KEY_ID`, ...), of a profile or of the machine.

    :param prefix: what all keys begin with.
    :param endpoint: URL of the service, default Amazon's.
    :param anonymous: read without keys.
    """

    loader: Literal['s3']
    bucket: str = Field(pattern=r'^[a-z0-9][a-z0-9.-]{1,62}$')
    prefix: str = ''
    endpoint: str | None = Field(default=None, pattern=r'^https?://[^/?#\s]+/?$')
    anonymous: bool = False

    @field_validator('prefix')
    @classmethod
    def _folder(cls, value: str) -> str:
        return value if not value or value.endswith('/') else value + '/'

    def fetch(self, place: str) -> bytes:
        import fsspec

        files = fsspec.filesystem('s3', anon=self.anonymous, endpoint_url=self.endpoint)
        limit, path = MAX_BYTES[self.modality], f'{self.bucket}/{self.prefix}{_checked_segments(place)}'
        try:
            with files.open(path, 'rb', cache_type='none') as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            raise DataError('there is no such object') from None
        except Exception as error:  # those of the client have no common base, and their texts may show keys
            raise DataError(f'it cannot be read: {type(error).__name__}') from None
        if len(content) > limit:
            raise DataError(f'it is larger than the limit of {limit >> 20} MiB')
        return bytes(content)

    def _place(self, result: SearchResult) -> str:
        named = (result.meta or {}).get('bucket')
        if named is not None and named != self.bucket:
            raise DataError('it is in a bucket that is not that of the items')
        return super()._place(result)


ItemSource = Annotated[InlineItems | FolderItems | WebItems | BucketItems, Field(discriminator='loader')]


def _may_pass(error: BaseException | None) -> bool:
    """Whether one of the errors that led to this one is of those that pass."""
    while error is not None:
        if isinstance(error, HTTPError):
            return error.code == 429 or error.code >= 500
        if isinstance(error, BadStatusLine | IncompleteRead) or is_passing(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _checked_segments(path: str) -> str:
    """:raises DataError: the path would lead out of where it begins."""
    if path.startswith('/') or '\\' in path or {'', '.', '..'} & set(path.split('/')):
        raise DataError('it leads out of where the items are')
    return path


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else str(integers(value)) if isinstance(value, int | float) else ''
