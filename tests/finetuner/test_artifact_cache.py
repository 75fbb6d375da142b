"""What is kept of artifacts that were fetched or unpacked."""

import os
import time

import pytest

from finetuner.artifact.cache import make_room, mark_used
from finetuner.artifact.opening import open_artifact

HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_ARTIFACT_CACHE_BYTES', '2500')

    def add(name, age, is_folder=False):
        path = tmp_path / name
        if is_folder:
            (path / 'models').mkdir(parents=True)
            (path / 'models' / 'weights').write_bytes(bytes(1000))
        else:
            path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age,) * 2)

    add('oldest.zip', 5 * HOUR)
    add('older', 4 * HOUR, is_folder=True)
    add('old.zip', 3 * HOUR)
    add('new', 0.5 * HOUR, is_folder=True)
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_what_was_not_used_for_longest_goes_until_the_folder_is_small_enough(folder):
    make_room(folder)
    assert names(folder) == {'old.zip', 'new'}


def test_what_is_used_counts_as_new(folder):
    mark_used(folder / 'oldest.zip')
    mark_used(folder / 'gone.zip')
    make_room(folder)
    assert names(folder) == {'oldest.zip', 'new'}


def test_what_was_used_in_the_last_hour_stays_however_little_room_there_is(folder, monkeypatch):
    monkeypatch.setenv('FINETUNER_ARTIFACT_CACHE_BYTES', '0')
    make_room(folder)
    assert names(folder) == {'new'}


def test_leftovers_of_killed_processes_go_after_a_day(folder, monkeypatch):
    monkeypatch.setenv('FINETUNER_ARTIFACT_CACHE_BYTES', '1000000')
    for name in ('.unpacking-a', '.download-b', 'c.zip.1.part'):
        (folder / name).write_bytes(b'')
        os.utime(folder / name, (time.time() - 2 * DAY,) * 2)
    (folder / '.download-now').write_bytes(b'')
    make_room(folder)
    assert names(folder) == {'oldest.zip', 'older', 'old.zip', 'new', '.download-now'}


def test_artifacts_unpacked_before_make_room_for_the_next(tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_ARTIFACT_CACHE_BYTES', '0')
    before = tmp_path / 'cache' / ('a' * 64)
    before.mkdir(parents=True)
    (before / 'weights').write_bytes(b'...')
    os.utime(before, (time.time() - 2 * HOUR,) * 2)
    opened = open_artifact(tiny_artifact, cache=tmp_path / 'cache')
    assert not before.exists() and opened.directory.exists()
