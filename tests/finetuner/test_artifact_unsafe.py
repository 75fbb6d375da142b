"""What must not be opened: each case is refused with a sentence that says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import random
import stat
import struct
import zipfile
import zlib

import pytest
import yaml

from finetuner.artifact import ArtifactError, open_artifact

WEIGHTS = 'models/model/model.safetensors'


def make_files(**changes):
    """The files of a good artifact by path; metadata.yml is written to fit, unless it is among the changes."""
    files = {'config.yml': b'epochs: 2\n', 'metrics.yml': b'{}\n', WEIGHTS: b'weights' * 1000}
    files |= {path: content for path, content in changes.items() if path != 'metadata.yml'}
    if 'metadata.yml' in changes:
        files['metadata.yml'] = changes['metadata.yml']
    else:
        files['metadata.yml'] = yaml.safe_dump(make_metadata(files)).encode()
    return files


def make_metadata(files):
    return {
        'format_version': 1,
        'name': 'run',
        'models': {'model': {'task': 'text-to-text', 'dim': 3, 'max_length': 16, 'preprocess_types': ['text']}},
        'files': {
            path: {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        },
    }


@pytest.fixture
def refuse(tmp_path):
    """Asserts that a zip, given as bytes or as (entry, content) pairs, is refused, and that nothing is left of it."""

    def check(entries, match, **options):
        path = tmp_path / 'run.zip'
        path.write_bytes(entries if isinstance(entries, bytes) else make_zip(entries))
        before = {found for found in tmp_path.rglob('*') if 'cache' not in found.parts}
        with pytest.raises(ArtifactError, match=match) as caught:
            open_artifact(path, cache=tmp_path / 'cache', **options)
        assert str(path) in str(caught.value)
        assert before == {found for found in tmp_path.rglob('*') if 'cache' not in found.parts}
        assert not list((tmp_path / 'cache').rglob('*'))

    return check


def make_zip(entries, compression=zipfile.ZIP_STORED):
    """:param entries: pairs of a name, or a ZipInfo, and the content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def as_entries(files, root='run'):
    return [(f'{root}/{path}', content) for path, content in files.items()]


def refused_path(name):
    # in the metadata too, so that the path itself is the only thing wrong
    info = zipfile.ZipInfo()
    info.filename = info.orig_filename = name
    return [*as_entries(make_files()), (info, b'gotcha')]


def test_the_artifact_that_the_cases_start_from_is_good(tmp_path):
    (tmp_path / 'run.zip').write_bytes(make_zip(as_entries(make_files())))
    assert open_artifact(tmp_path / 'run.zip').config == {'epochs': 2}


@pytest.mark.parametrize('name', ['../evil', 'run/../../evil', 'run/models/../../../evil', '..'])
def test_path_traversal(refuse, name):
    refuse(refused_path(name), 'path leads out of it, which is unsafe')


@pytest.mark.parametrize('name', ['/etc/evil', '//host/evil', 'C:/evil', 'c:evil'])
def test_absolute_path(refuse, name):
    refuse(refused_path(name), 'absolute path, which is unsafe')


@pytest.mark.parametrize(
    'name', ['..\\evil', 'run\\..\\..\\evil', '\\evil', 'run/a:stream', 'run/new\nline', 'run/nul\0x']
)
def test_path_that_is_another_one_on_another_system(refuse, name):
    refuse(refused_path(name), 'backslash, colon or odd character')


@pytest.mark.parametrize('name', ['run/./evil', 'run//evil'])
def test_path_with_idle_parts(refuse, name):
    refuse(refused_path(name), 'empty part or a dot')


def test_path_that_no_file_system_takes(refuse):
    refuse(refused_path('run/' + 'x' * 300), 'too long')


def test_traversal_in_the_metadata(refuse):
    files = make_files()
    metadata = make_metadata({path: files[path] for path in files if path != 'metadata.yml'})
    metadata['files']['../../../etc/passwd'] = {'size': 1, 'sha256': '0' * 64}
    refuse(as_entries(make_files(**{'metadata.yml': yaml.safe_dump(metadata).encode()})), 'path leads out of it')


def test_symbolic_link_in_a_zip(refuse):
    link = zipfile.ZipInfo('run/models/model/link')
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refuse(
        [*as_entries(make_files()), (link, b'/etc/passwd')], "symbolic link, which is unsafe: 'run/models/model/link'"
    )


def test_device_in_a_zip(refuse):
    pipe = zipfile.ZipInfo('run/models/model/pipe')
    pipe.create_system = 3
    pipe.external_attr = (stat.S_IFIFO | 0o777) << 16
    refuse([*as_entries(make_files()), (pipe, b'')], 'neither a file nor a directory')


@pytest.mark.parametrize('to_directory', [False, True])
def test_symbolic_link_in_a_directory(tmp_path, to_directory):
    files = make_files()
    for path, content in files.items():
        (tmp_path / 'run' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'run' / path).write_bytes(content)
    open_artifact(tmp_path / 'run')
    moved = tmp_path / 'run' / ('models' if to_directory else 'config.yml')
    moved.rename(tmp_path / 'elsewhere')
    moved.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(ArtifactError, match=f"symbolic link, which is unsafe: '{moved.name}'"):
        open_artifact(tmp_path / 'run')


def test_zip_bomb_by_declared_size(refuse):
    refuse(as_entries(make_files()), 'unpacks to 7[0-9]{3} bytes: the limit is 5000', max_bytes=5000)


def test_zip_bomb_by_ratio(refuse):
    files = make_files(**{WEIGHTS: bytes(80 << 20)})
    refuse(make_zip(as_entries(files), zipfile.ZIP_DEFLATED), 'looks like a zip bomb')


def test_zip_bomb_that_declares_less_than_it_holds(refuse):
    real = bytes(range(255)) * 4111
    files = make_files(**{WEIGHTS: real[:1000]})
    data = make_zip(as_entries(files | {WEIGHTS: real}), zipfile.ZIP_DEFLATED)
    # the size and checksum of the beginning, which is what the metadata lists
    honest = struct.pack('<I', zlib.crc32(real)), struct.pack('<I', len(real))
    false = struct.pack('<I', zlib.crc32(real[:1000])), struct.pack('<I', 1000)
    for old, new in zip(honest, false, strict=True):
        assert data.count(old) == 2
        data = data.replace(old, new)
    refuse(data, "'model.safetensors' in the zip goes on after the 1000 bytes that it declares")


def test_stored_entry_with_two_sizes(refuse):
    data = make_zip(as_entries(make_files()))
    size = struct.pack('<II', 7000, 7000)
    assert data.count(size) == 2
    refuse(data.replace(size, struct.pack('<II', 7000, 700)), 'two sizes: 7000 and 700')


def test_overlapping_entries(refuse):
    """Two entries that share one piece of the file."""
    content = b'{"a": 1}'
    files = make_files(**{'models/model/a.json': content, 'models/model/b.json': content})
    data = make_zip(as_entries(files))
    directory = struct.unpack('<I', data[-6:-2])[0]
    first, second = (data.index(f'run/models/model/{name}.json'.encode(), directory) for name in 'ab')
    offset = data[first - 4 : first]
    data = data[: second - 4] + offset + data[second:]
    refuse(data, 'truncated or damaged')


def test_too_many_entries(refuse):
    refuse([(f'run/{number}', b'') for number in range(10_001)], 'has 10001 entries')


@pytest.mark.parametrize(
    ('entries', 'size', 'match'),
    [(10_001, None, 'has 10001 entries'), (None, (16 << 20) + 1, 'a directory of 16777217 bytes: the limit is 16 MiB')],
)
@pytest.mark.parametrize('is_zip64', [False, True])
def test_a_directory_beyond_the_limits_is_not_read(refuse, monkeypatch, entries, size, match, is_zip64):
    data = make_zip(as_entries(make_files()))
    count, true_size, offset = struct.unpack('<HII', data[-12:-2])
    entries, size = entries or count, size or true_size
    end = struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, entries, entries, size, offset, 0)
    if is_zip64:
        end = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, entries, entries, size, offset)
        end += struct.pack('<4sLQL', b'PK\6\7', 0, len(data) - 22, 1)
        end += struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    monkeypatch.setattr(zipfile.ZipFile, '_RealGetContents', None)
    refuse(data[:-22] + end, match)


def test_more_entries_than_the_record_says(refuse):
    data = make_zip([(f'run/{number}', b'') for number in range(10_001)])
    refuse(data[:-14] + struct.pack('<HH', 1, 1) + data[-10:], 'has 10001 entries')


def test_missing_file(refuse):
    files = make_files()
    del files[WEIGHTS]
    refuse(as_entries(files), f'lacks a file that its metadata.yml lists: {WEIGHTS}')


@pytest.mark.parametrize('content', [b'weightz' * 1000, b'short'])
def test_altered_file(refuse, content):
    refuse(as_entries(make_files() | {WEIGHTS: content}), f'the file {WEIGHTS} is not the one that was packed')


def test_extra_file(refuse):
    files = make_files() | {'models/model/evil.py': b'import os'}
    refuse(as_entries(files), 'a file that its metadata.yml does not list: models/model/evil.py')


@pytest.mark.parametrize('change', ['missing', 'altered', 'extra'])
def test_changes_in_a_directory(tmp_path, change):
    for path, content in make_files().items():
        (tmp_path / 'run' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'run' / path).write_bytes(content)
    weights = tmp_path / 'run' / WEIGHTS
    if change == 'missing':
        weights.unlink()
    else:
        (weights if change == 'altered' else weights.with_name('evil.py')).write_bytes(b'weightz' * 1000)
    expected = {'missing': 'lacks a file', 'altered': 'sha256 differs', 'extra': 'does not list: models/model/evil.py'}
    with pytest.raises(ArtifactError, match=expected[change]):
        open_artifact(tmp_path / 'run')


@pytest.mark.parametrize(('version', 'advice'), [(2, ': update finetuner'), ('1', ''), (None, ''), (True, '')])
def test_unknown_format_version(refuse, version, advice):
    metadata = yaml.safe_dump({'format_version': version}).encode()
    refuse(
        as_entries(make_files(**{'metadata.yml': metadata})), f'format version {version!r}, and .* version 1{advice}'
    )


@pytest.mark.parametrize('file', ['metadata.yml', 'config.yml', 'metrics.yml'])
@pytest.mark.parametrize(
    'content', [b'a: !!python/object/apply:os.system ["touch evil"]', b'a: !!python/name:os.system', b'a: !own b']
)
def test_unsafe_yaml(refuse, tmp_path, monkeypatch, file, content):
    monkeypatch.chdir(tmp_path)
    if file == 'metadata.yml':
        refuse(as_entries(make_files(**{file: content})), f'{file} is unsafe YAML: .*tag')
        return
    # the unpacked folder stays: its files are what the metadata lists
    (tmp_path / 'run.zip').write_bytes(make_zip(as_entries(make_files(**{file: content}))))
    with pytest.raises(ArtifactError, match=f'{file} is unsafe YAML: .*tag'):
        open_artifact(tmp_path / 'run.zip')
    assert not (tmp_path / 'evil').exists()


def test_yaml_that_grows(refuse):
    lines = ['a0: &a0 [x, x]', *(f'a{n}: &a{n} [*a{n - 1}, *a{n - 1}]' for n in range(1, 40))]
    content = '\n'.join(lines).encode()
    refuse(as_entries(make_files(**{'metadata.yml': content})), 'unsafe YAML: aliases are not allowed')


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (b'a: [', 'not valid YAML'),
        (b'[' * 100_000, 'not valid YAML'),
        (b'\x00', 'not valid YAML'),
        (b'- 1', 'not a mapping'),
        (b'#' * (9 << 20), 'larger than 8 MiB'),
        (b'format_version: 1', "no mapping 'models'"),
        (b'{format_version: 1, models: {m: {dim: 3}}, files: {}}', "describes the model 'm' incompletely"),
        (b'{format_version: 1, models: {}, files: {a: {size: -1, sha256: x}}}', "no size and sha256 of the file 'a'"),
    ],
)
def test_metadata_that_makes_no_sense(refuse, content, match):
    refuse(as_entries(make_files(**{'metadata.yml': content})), match)


def test_duplicate_entries(refuse):
    with pytest.warns(UserWarning, match='Duplicate name'):
        data = make_zip([*as_entries(make_files()), ('run/config.yml', b'epochs: 3\n')])
    refuse(data, "two entries for 'run/config.yml'")


def test_entries_that_are_the_same_where_case_does_not_count(refuse):
    refuse([*as_entries(make_files()), ('run/CONFIG.yml', b'epochs: 3\n')], "two entries for 'run/CONFIG.yml'")


def test_file_that_is_also_a_folder(refuse):
    refuse([*as_entries(make_files()), ('run/config.yml/x', b'')], "'config.yml' both as a file and as a folder")


@pytest.mark.parametrize('content', [b'', b'hello', b'\x1f\x8b' + bytes(100), b'%PDF-1.7'])
def test_not_a_zip(refuse, content):
    refuse(content, 'this is not a zip file')


@pytest.mark.parametrize('part', [0.2, 0.5, 0.9, 0.999])
def test_truncated_zip(refuse, part):
    data = make_zip(as_entries(make_files()))
    refuse(data[: int(len(data) * part)], 'truncated or damaged')


def test_encrypted_zip(refuse):
    data = bytearray(make_zip(as_entries(make_files())))
    for signature, flags in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    refuse(bytes(data), 'is encrypted')


def test_unusual_compression(refuse):
    refuse(make_zip(as_entries(make_files()), zipfile.ZIP_LZMA), 'compressed in an unusual way')


def test_zips_of_something_else(refuse):
    refuse([('readme.txt', b'hello')], "'readme.txt' is in no folder")
    refuse([('a/metadata.yml', b''), ('b/metadata.yml', b'')], '2 top folders')
    refuse([('a/readme.txt', b'hello')], 'has no metadata.yml')
    refuse(make_zip([]), '0 top folders')


def test_nothing_there(tmp_path):
    with pytest.raises(ArtifactError, match='no such file or directory'):
        open_artifact(tmp_path / 'run.zip')
    with pytest.raises(ArtifactError, match='has no metadata.yml'):
        open_artifact(tmp_path)


def test_any_damage_is_noticed(tmp_path):
    """A changed byte either does not matter, so that the same files come out, or is an ArtifactError."""
    files = make_files()
    good = make_zip(as_entries(files), zipfile.ZIP_DEFLATED)
    path = tmp_path / 'run.zip'
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            opened = open_artifact(path, cache=tmp_path / 'cache')
        except ArtifactError:
            refused += 1
        else:
            assert (opened.directory / WEIGHTS).read_bytes() == files[WEIGHTS]
            assert opened.config == {'epochs': 2}
    assert 100 < refused < 400
