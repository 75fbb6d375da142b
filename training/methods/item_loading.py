"""The contents of all items of some sessions, as far as they can be read."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from finetuner.data.contents import modality_of
from finetuner.excepts import DataError
from registry.click_records import ClickSession, SearchResult
from training.methods.items import AwayError, InlineItems, ItemSource

logger = logging.getLogger(__name__)

READERS = 8
PAUSES = (2.0, 10.0, 30.0)
"""Seconds, after each of which some of what was away is read again, and if some of that is there, all: a server that
stays away costs little more, however many items it has."""
TOLD = 5
"""Items of which the log says why they are missing."""


@dataclass
class LoadedItems:
    """
    :param contents: by object id: a text, or the file of an image.
    :param missing: why the others could not be read, by object id.
    """

    contents: dict[str, str | Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def load_items(source: ItemSource, sessions: Iterable[ClickSession], directory: Path) -> LoadedItems:
    """Read every item that the sessions show, eight at a time. Of several that say something of an item, the last
    counts. What cannot be read is left out, and the log says why; what is only away for now is tried again before.

    :param directory: where images are put; those that are there already are not read again.
    :raises DataError: none can be read.
    """
    results: dict[str, SearchResult] = {}
    for session in sessions:
        for result in session.search_results:
            if result.meta is not None or result.object_id not in results:
                results[result.object_id] = result
    directory.mkdir(parents=True, exist_ok=True)
    found = _read_all(source, results, directory)
    for pause in PAUSES:
        away = {name: results[name] for name, content in found.items() if isinstance(content, AwayError)}
        if not away:
            break
        logger.warning('%d of %d items cannot be read now: trying again', len(away), len(results))
        time.sleep(pause)
        some = dict(islice(away.items(), READERS))
        found |= _read_all(source, some, directory)
        if not all(isinstance(found[name], AwayError) for name in some):
            found |= _read_all(source, {name: away[name] for name in away.keys() - some.keys()}, directory)
    loaded = LoadedItems()
    for name, content in found.items():
        if isinstance(content, DataError):
            loaded.missing[name] = str(content)
        else:
            loaded.contents[name] = content
    for name, reason in list(loaded.missing.items())[:TOLD]:
        logger.warning('The item %r is left out: %s', name, reason)
    if loaded.missing:
        logger.warning('%d of %d items are left out', len(loaded.missing), len(results))
    if results and not loaded.contents:
        name, reason = next(iter(loaded.missing.items()))
        raise DataError(f'none of {len(results)} items can be read; {name!r}: {reason}')
    return loaded


def _read_all(
    source: ItemSource, results: Mapping[str, SearchResult], directory: Path
) -> dict[str, str | Path | DataError]:
    """Contents by object id, or why there are none."""

    def load(result: SearchResult) -> str | Path | DataError:
        try:
            return _load(source, result, directory)
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(results, pool.map(load, results.values()), strict=True))


def _load(source: ItemSource, result: SearchResult, directory: Path) -> str | Path:
    if isinstance(source, InlineItems):
        return source.read(result)
    if source.modality == 'text':
        try:
            text = source.read(result).decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f'it is no UTF-8 text: {error.reason} at byte {error.start}') from error
        if not text:
            raise DataError('it is empty')
        return text
    path = directory / f'{hashlib.sha256(result.object_id.encode()).hexdigest()[:32]}.image'
    if not path.is_file():
        content = source.read(result)
        if modality_of(blob=content) != 'image':
            raise DataError('it is no image')
        aside = path.with_name(f'{path.name}.part')
        aside.write_bytes(content)
        os.replace(aside, path)
    return path
