"""A registry as a folder: a copy of its database as an SQLite file, and every object that is named there.

Objects are never changed, and are stored before a row names them. So the rows are copied first, in one transaction, and
the objects after them. One that was deleted meanwhile is missing then: the rows are copied again, at last while writers
have to wait. At the end every row has its object. The folder is also a `FINETUNER_HOME`: a service can start on it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import URL, Connection, Table, func, select

from finetuner.excepts import DataError, RegistryError
from registry.database import Database
from registry.models import Base
from registry.objects import ObjectStore, copy_hashed

DATABASE = 'registry.db'
OBJECTS = 'objects'
ASIDE = '.backup-'
BATCH = 500
"""Rows that are held in memory."""
ROUNDS = 3
"""How often the rows are copied again because objects were deleted meanwhile."""


def write_backup(database: Database, objects: ObjectStore, folder: Path) -> tuple[int, int]:
    """Write a backup into a folder, or bring the one that is there up to date: it is whole at any time.

    :return: how many objects it has, and how many bytes they are.
    :raises RegistryError: `folder` has something else in it.
    :raises DataError: an object of the registry is missing or damaged.
    :raises UnavailableError: the database was lost, or others wrote to it for too long.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.glob(f'{ASIDE}*'):  # by a backup that was killed
        shutil.rmtree(left)
    kept = ObjectStore(str(folder / OBJECTS))
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder) as aside:
        path = Path(aside, DATABASE)
        compared: set[str] = set()
        for number in range(1, ROUNDS + 1):
            # in the last round nobody may write: nothing is left to it but the rows, and objects that are new
            with nullcontext() if number < ROUNDS else database.without_writers():
                path.unlink(missing_ok=True)
                named = _copy_database(database, path)
                new = [(key, sha256) for key, sha256, _ in named if key not in compared]
                gone = [key for key, sha256 in new if not _keep(key, sha256, objects, kept, Path(aside), database)]
            if not gone:
                break
            compared |= {key for key, _ in new}.difference(gone)
        else:
            raise DataError(f'{gone[0]} is missing in the object store')
        _check_unused(folder / DATABASE)
        path.replace(folder / DATABASE)
    _remove_others(folder / OBJECTS, {key for key, _, _ in named})
    return len(named), sum(size for _, _, size in named)


def restore_backup(folder: Path, database: Database, objects: ObjectStore) -> tuple[int, int]:
    """Put what is in a backup into a registry that is empty, whatever database and object store it has.

    :return: how many objects were restored, and how many bytes they are.
    :raises RegistryError: there is no backup in `folder`, or the registry is not empty.
    :raises DataError: an object of the backup is missing or damaged.
    """
    check_backup(folder)
    database.migrate()
    kept = ObjectStore(str(folder / OBJECTS))
    with tempfile.TemporaryDirectory(prefix='restore-') as aside, _opened(folder / DATABASE, Path(aside)) as source:
        with source.read() as session:
            named = _named_objects(session.connection())
        _check_empty(database)
        for key, sha256, _ in named:
            _put(kept.fetch(key, sha256, Path(aside)), key, sha256, objects, Path(aside))
        with source.read() as reading, database.write() as writing:
            _copy_rows(reading.connection(), writing.connection())
    return len(named), sum(size for _, _, size in named)


def check_backup(folder: Path) -> None:
    """
    :raises RegistryError: there is no backup in `folder`.
    """
    if not (folder / DATABASE).is_file():
        raise RegistryError(f'There is no backup in {folder}: it has no {DATABASE}')


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or not ((folder / DATABASE).is_file() or all(map(_is_ours, folder.iterdir()))):
        raise RegistryError(f'{folder} is no backup, and is not empty: name another folder')
    _check_unused(folder / DATABASE)


def _is_ours(path: Path) -> bool:
    """Whether the first backup into a folder, which was killed, may have left this there."""
    return path.name == OBJECTS or path.name.startswith(ASIDE)


def _check_unused(path: Path) -> None:
    """SQLite would take what is beside a database for its latest changes, also beside another one of its name."""
    for beside in ('-wal', '-shm'):
        if path.with_name(f'{path.name}{beside}').exists():
            raise RegistryError(
                f'A service uses {path}, or was killed while it did: a backup would overwrite it; name another folder'
            )


def _copy_database(database: Database, path: Path) -> list[tuple[str, str, int]]:
    """Copy the rows of one moment into a new SQLite file, and return the objects that they name."""
    target = Database(URL.create('sqlite', database=str(path)))
    try:
        target.migrate()
        with database.snapshot() as reading, target.write() as writing:
            _copy_rows(reading, writing.connection())
        with target.read() as session:
            named = _named_objects(session.connection())
        with target.engine.connect() as connection:  # one file, without a log beside it
            connection.exec_driver_sql('COMMIT')
            connection.exec_driver_sql('PRAGMA journal_mode = DELETE')
        return named
    finally:
        target.close()


@contextmanager
def _opened(path: Path, aside: Path) -> Iterator[Database]:
    """A copy of the database of a backup, at this version of the program."""
    shutil.copyfile(path, aside / DATABASE)
    database = Database(URL.create('sqlite', database=str(aside / DATABASE)))
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in Base.metadata.sorted_tables:
        rows = source.execution_options(yield_per=BATCH).execute(select(table))
        for batch in rows.mappings().partitions(BATCH):
            target.execute(table.insert(), [dict(row) for row in batch])


def _named_objects(connection: Connection) -> list[tuple[str, str, int]]:
    """Key, sha256 and size of every object that a row names."""
    queries = [select(table.c.key, table.c.sha256, table.c.size) for table in _with_objects()]
    return [(row.key, row.sha256, row.size) for query in queries for row in connection.execute(query)]


def _with_objects() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if 'key' in table.c]


def _keep(key: str, sha256: str, objects: ObjectStore, kept: ObjectStore, aside: Path, database: Database) -> bool:
    """Have an object in the backup; False if it was deleted since the rows were copied."""
    try:
        kept.fetch(key, sha256, aside)
        return True
    except DataError:  # not there yet, or damaged
        pass
    try:
        found = objects.fetch(key, sha256, aside)
    except DataError:
        if _is_named(database, key):
            raise
        return False
    _put(found, key, sha256, kept, aside)
    return True


def _put(source: Path, key: str, sha256: str, target: ObjectStore, aside: Path) -> None:
    copied = aside / 'object'
    if copy_hashed(source, copied)[0] != sha256:
        raise DataError(f'{key} changed while it was read')
    target.put(copied, key)
    copied.unlink(missing_ok=True)
    if source.parent == aside:
        source.unlink()


def _is_named(database: Database, key: str) -> bool:
    with database.read() as session:
        return any(session.scalar(select(func.count()).where(table.c.key == key)) for table in _with_objects())


def _check_empty(database: Database) -> None:
    with database.read() as session:
        for table in Base.metadata.sorted_tables:
            if session.scalar(select(func.count()).select_from(table)):
                raise RegistryError(
                    f'The registry at {database.engine.url!r} is not empty ({table.name}): restore into a new one'
                )


def _remove_others(folder: Path, keys: set[str]) -> None:
    """Remove objects of an earlier state of the backup."""
    for path in folder.rglob('*'):
        if path.is_file() and path.relative_to(folder).as_posix() not in keys:
            path.unlink()
