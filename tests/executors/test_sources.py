import json
import secrets
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from executors import sources
from executors.sources import read_uri
from finetuner.data import CSVOptions
from finetuner.excepts import DataError


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / 'allowed'
    folder.mkdir()
    (folder / 'data.csv').write_text('a shirt,clothes\nan apple,food\n')
    (folder / 'with space.csv').write_text('a shirt,clothes\n')
    (tmp_path / 'outside.csv').write_text('secret,stuff\n')
    (folder / 'link.csv').symlink_to(tmp_path / 'outside.csv')
    (folder / 'inner.csv').symlink_to(folder / 'data.csv')
    (tmp_path / 'allowed-too').mkdir()
    (tmp_path / 'allowed-too' / 'data.csv').write_text('secret,stuff\n')
    return folder


def read(uri, root=None, schemes=('file',)):
    return list(read_uri(str(uri), CSVOptions(header=False), [root] if root else [], schemes))


def test_reads_a_path_or_a_file_uri(root):
    for uri in (root / 'data.csv', f'file://{root}/data.csv', f'file://localhost{root}/data.csv', root / 'inner.csv'):
        assert [document.text for document in read(uri, root)] == ['a shirt', 'an apple']
    assert len(read(f'file://{root}/with%20space.csv', root)) == 1


@pytest.mark.parametrize(
    'uri',
    [
        '{root}/../outside.csv',
        'file://{root}/../outside.csv',
        'file://{root}/%2e%2e/outside.csv',
        '{root}/link.csv',
        '{root}-too/data.csv',
        '/etc/passwd',
        '/nowhere/at/all',
    ],
)
def test_refuses_what_lies_outside_and_does_not_tell_whether_it_exists(root, uri):
    with pytest.raises(DataError, match='is not below a folder that this service may read'):
        read(uri.format(root=root), root)


def test_refuses_every_file_where_no_folder_is_allowed(root):
    with pytest.raises(DataError, match='reads no files.*FINETUNER_INGEST_ROOTS'):
        read(root / 'data.csv')


def test_names_a_file_that_is_not_there(root):
    with pytest.raises(DataError, match='there is no file .*nothing.csv'):
        read(root / 'nothing.csv', root)
    with pytest.raises(DataError, match='there is no file'):
        read(root, root)


@pytest.mark.parametrize('uri', ['data.csv', './data.csv', '~/data.csv', 'file:///x\0y'])
def test_refuses_what_is_no_absolute_path(root, uri):
    with pytest.raises(DataError, match='not an absolute path'):
        read(uri, root)


def test_refuses_other_machines(root):
    with pytest.raises(DataError, match='on another machine, host'):
        read('file://host/data.csv', root)


@pytest.mark.parametrize(
    'uri',
    ['s3://bucket/x.csv', 'http://169.254.169.254/', 'memory://x.csv', 'simplecache::file:///etc/passwd', 'FTP://x'],
)
def test_refuses_schemes_that_are_not_allowed(root, uri):
    with pytest.raises(DataError, match=r'does not read .*://.*only file.*FINETUNER_INGEST_SCHEMES'):
        read(uri, root)


def test_reads_other_schemes_when_they_are_allowed():
    with fsspec.open('memory://folder/data.csv', 'w') as file:
        file.write('a shirt,clothes\n')
    assert read('memory://folder/data.csv', schemes=['memory'])[0].text == 'a shirt'
    with pytest.raises(DataError, match='memory://nothing.csv cannot be read'):
        read('memory://nothing.csv', schemes=['memory'])
    with pytest.raises(DataError, match='does not read file://'):
        read('/etc/passwd', schemes=['memory'])


def test_what_cannot_be_decoded_is_an_error_of_the_data(root):
    (root / 'latin.csv').write_bytes('ein Hemd für alle,Kleidung\n'.encode('latin-1'))
    with fsspec.open('memory://folder/latin.csv', 'wb') as file:
        file.write((root / 'latin.csv').read_bytes())
    with pytest.raises(DataError, match=r'latin\.csv.*utf-8'):
        read(root / 'latin.csv', root)
    with pytest.raises(DataError, match=r'memory://folder/latin\.csv cannot be read: .*utf-8'):
        read('memory://folder/latin.csv', schemes=['memory'])
    for uri in (root / 'latin.csv', 'memory://folder/latin.csv'):
        with pytest.raises(DataError, match=r'latin\.csv cannot be read: .*not a text encoding'):
            list(read_uri(str(uri), CSVOptions(encoding='hex'), [root], ['file', 'memory']))


def test_an_error_of_a_web_server_is_told_without_the_secrets_of_the_uri(root):
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        do_HEAD = do_GET

    with ThreadingHTTPServer(('127.0.0.1', 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        secret = secrets.token_hex()
        uri = f'http://me:{secret}@127.0.0.1:{server.server_port}/data.csv'
        with pytest.raises(DataError, match=r'^http://127\.0\.0\.1:\d+/data\.csv cannot be read: ') as caught:
            read(f'{uri}?key={secret}', schemes=['http'])
        server.shutdown()
    assert secret not in ''.join(traceback.format_exception(caught.value))


def test_a_malformed_row_is_named_by_the_uri_and_line(root):
    (root / 'bad.csv').write_text('a shirt,clothes\nalone\n')
    with pytest.raises(DataError, match=r'bad\.csv.*2'):
        read(root / 'bad.csv', root)


@pytest.mark.parametrize('suffix', ['jsonl', 'parquet', 'arrow'])
def test_reads_other_files_too(root, suffix):
    path = root / f'data.{suffix}'
    table = pa.table({'text': ['a shirt', 'an apple'], 'label': ['clothes', 'food']})
    if suffix == 'jsonl':
        path.write_text(''.join(json.dumps(row) + '\n' for row in table.to_pylist()))
    elif suffix == 'parquet':
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    assert [document.text for document in read(path, root)] == ['a shirt', 'an apple']
    with fsspec.open(f'memory://folder/data.{suffix}', 'wb') as file:
        file.write(path.read_bytes())
    assert [document.text for document in read(f'memory://folder/data.{suffix}', schemes=['memory'])] == [
        'a shirt',
        'an apple',
    ]


PNG = b'\x89PNG\r\n\x1a\n'


def test_images_are_read_below_the_same_folders(root, tmp_path):
    (root / 'pictures').mkdir()
    (root / 'pictures' / 'a.png').write_bytes(PNG)
    (tmp_path / 'secret.png').write_bytes(PNG)
    (root / 'link.png').symlink_to(tmp_path / 'secret.png')
    table = root / 'pictures.csv'
    for uri in (
        'pictures/a.png',
        f'{root}/pictures/a.png',
        f'file://{root}/pictures/a.png',
        'pictures/../pictures/a.png',
    ):
        table.write_text(f'{uri},x\n{uri},x\n')
        assert [document.blob for document in read(table, root)] == [PNG, PNG]
    for uri in ('../secret.png', f'{tmp_path}/secret.png', 'link.png', '/etc/passwd.png', '../nothing.png'):
        table.write_text(f'{uri},x\n{uri},x\n')
        with pytest.raises(DataError, match=r'pictures\.csv, line 1, column 1: it names a file that is not below'):
            read(table, root)
    table.write_text('pictures/b.png,x\npictures/b.png,x\n')
    with pytest.raises(DataError, match='line 1, column 1: there is no file pictures/b.png$'):
        read(table, root)


def test_urls_in_a_file_need_their_scheme(root):
    with fsspec.open('memory://folder/a.png', 'wb') as file:
        file.write(PNG)
    (root / 'urls.csv').write_text('memory://folder/a.png,x\nmemory://folder/a.png,x\n')
    with pytest.raises(DataError, match='memory:// URIs are not read here'):
        read(root / 'urls.csv', root)
    assert [document.blob for document in read(root / 'urls.csv', root, ['file', 'memory'])] == [PNG, PNG]


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_a_remote_file_names_no_file_of_this_machine(root, suffix):
    (root / 'a.png').write_bytes(PNG)
    for uri in ('a.png', f'{root}/a.png', '/proc/self/environ.png'):
        with fsspec.open(f'memory://folder/thief.{suffix}', 'wb') as file:
            if suffix == 'csv':
                file.write(f'{uri},x\n{uri},x\n'.encode())
            else:
                pq.write_table(pa.table({'image': [uri], 'label': ['x']}), file)
        with pytest.raises(DataError, match='below a folder|there is no file'):
            read(f'memory://folder/thief.{suffix}', root, schemes=['memory'])


def test_a_remote_file_of_columns_has_a_limit(root, monkeypatch):
    with fsspec.open('memory://folder/large.parquet', 'wb') as file:
        pq.write_table(pa.table({'text': ['a', 'b'], 'label': ['x', 'x']}), file)
    assert len(read('memory://folder/large.parquet', schemes=['memory'])) == 2
    monkeypatch.setattr(sources, 'MAX_REMOTE_BYTES', 100)
    with pytest.raises(DataError, match='memory://folder/large.parquet is larger than the limit'):
        read('memory://folder/large.parquet', schemes=['memory'])


@pytest.fixture
def elsewhere():
    """A web server that leads to where `elsewhere.target` says; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == '/long.csv':
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'a shirt,clothes\n' * 100)
                return
            self.send_response(302)
            self.send_header('Location', server.target)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f'http://127.0.0.1:{server.server_port}'
    yield server
    server.shutdown()


def test_a_redirect_leads_to_no_other_scheme(elsewhere):
    for target, message in (('https://127.0.0.1:1/data.csv', 'leads to https://'), ('file:///etc/passwd', 'HTTPError')):
        elsewhere.target = target
        with pytest.raises(DataError, match=message):
            read(f'{elsewhere.address}/data.csv', schemes=['http'])


def test_a_remote_text_file_has_a_limit(elsewhere, monkeypatch):
    assert len(read(f'{elsewhere.address}/long.csv', schemes=['http'])) == 100
    monkeypatch.setattr(sources, 'MAX_REMOTE_BYTES', 1000)
    with pytest.raises(DataError, match='long.csv is larger than the limit'):
        read(f'{elsewhere.address}/long.csv', schemes=['http'])
