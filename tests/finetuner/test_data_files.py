"""Images and meshes that data names by path, URL or bytes."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetuner.data import CSVOptions, csv_file, links, read_data
from finetuner.data.contents import modality_of_bytes, modality_of_uri
from finetuner.documents import LABEL, Content, Document
from finetuner.excepts import DataError


def picture(shade, format='PNG'):
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, format)
    return file.getvalue()


OFF = b'OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n'


@pytest.fixture
def folder(tmp_path):
    """Three pictures and two tables that name them, all in one folder, which is not the working folder."""
    (tmp_path / 'pictures').mkdir()
    for shade in range(3):
        (tmp_path / 'pictures' / f'{shade}.png').write_bytes(picture(shade))
    (tmp_path / 'solid.off').write_bytes(OFF)
    return tmp_path


def table(folder, *rows, name='table.csv'):
    with (folder / name).open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    return folder / name


@pytest.fixture
def server():
    """Serves `files` by path; a callable is called with the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served = self.server.files.get(self.path)
            if callable(served):
                served(self)
            elif served is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header('Content-Length', str(len(served)))
                self.end_headers()
                self.wfile.write(served)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        server.files = {}
        server.url = f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_images_are_read_from_beside_the_table(folder):
    path = table(folder, *((f'pictures/{n}.png', f'kind {n}') for n in range(3)))
    documents = list(read_data(path))
    assert [document.blob for document in documents] == [picture(n) for n in range(3)]
    assert [document.uri for document in documents] == [f'pictures/{n}.png' for n in range(3)]
    assert {document.modality for document in documents} == {'image'}
    assert documents[1].tags == {LABEL: 'kind 1'}


def test_images_are_read_from_the_working_folder_too(folder, monkeypatch, tmp_path_factory):
    path = table(tmp_path_factory.mktemp('elsewhere'), ('pictures/0.png', 'a'), ('pictures/1.png', 'a'))
    with pytest.raises(DataError, match='table.csv, line 1, column 1: there is no file pictures/0.png in .*elsewhere'):
        list(read_data(path))
    monkeypatch.chdir(folder)
    assert [document.blob for document in read_data(path)] == [picture(0), picture(1)]


def test_absolute_paths_and_file_uris(folder):
    path = table(folder, (folder / 'pictures/0.png', 'a'), ((folder / 'pictures/1.png').as_uri(), 'a'))
    assert [document.blob for document in read_data(path)] == [picture(0), picture(1)]


def test_a_table_that_is_open_knows_its_folder(folder):
    with table(folder, ('pictures/0.png', 'a'), ('pictures/1.png', 'a')).open(newline='') as file:
        assert len(list(read_data(file))) == 2


def test_pairs_of_text_and_image_are_brought_into_one_order(folder):
    expected = [('red', picture(0)), ('redder', picture(1))]
    for rows in (
        [('red', 'pictures/0.png'), ('redder', 'pictures/1.png')],
        [('pictures/0.png', 'red'), ('pictures/1.png', 'redder')],
    ):
        for task in ('text-to-image', None):
            documents = list(read_data(table(folder, *rows), CSVOptions(is_labeled=False), task=task))
            assert [(document.chunks[0].text, document.chunks[1].blob) for document in documents] == expected
            assert [chunk.modality for chunk in documents[0].chunks] == [None, 'image']


@pytest.mark.parametrize('swapped', [False, True])
def test_rows_of_another_order_are_named(folder, swapped):
    rows = [('red', 'pictures/0.png'), ('redder', 'pictures/1.png'), ('pictures/2.png', 'reddest')]
    rows = [row[::-1] for row in rows] if swapped else rows
    with pytest.raises(DataError, match='table.csv, line 3: the image is in column . and the text in column .,'):
        list(read_data(table(folder, *rows), CSVOptions(is_labeled=False), task='text-to-image'))


def test_the_task_decides_what_a_path_is(folder):
    path = table(folder, *((f'pictures/{n}.png', f'kind {n}') for n in range(3)))
    assert [document.text for document in read_data(path, task='text-to-text')] == [
        f'pictures/{n}.png' for n in range(3)
    ]
    path = table(folder, ('a picture', 'a'), ('pictures/1.png', 'b'))
    assert next(read_data(path)).text == 'a picture'
    with pytest.raises(DataError, match='line 1, column 1: there is no file a picture'):
        list(read_data(path, task='image-to-image'))


def test_a_sentence_with_a_file_in_it_is_text(folder):
    path = table(folder, ('open pictures/0.png now', 'a'), ('see https://example.org/a.png or so', 'a'))
    assert [document.modality for document in read_data(path)] == [None, None]


def test_images_in_json_lines_parquet_and_pillow(folder):
    lines = folder / 'table.jsonl'
    lines.write_text(''.join(json.dumps({'image': f'pictures/{n}.png', 'label': n}) + '\n' for n in range(3)))
    assert [document.blob for document in read_data(lines)] == [picture(n) for n in range(3)]
    blobs = [picture(n) for n in range(3)]
    pq.write_table(pa.table({'image': blobs, 'label': ['a'] * 3}), folder / 'blobs.parquet')
    assert [document.blob for document in read_data(folder / 'blobs.parquet')] == blobs
    structs = [{'bytes': blobs[0], 'path': None}, {'bytes': None, 'path': 'pictures/1.png'}]
    pq.write_table(pa.table({'image': structs, 'label': ['a'] * 2}), folder / 'structs.parquet')
    assert [document.blob for document in read_data(folder / 'structs.parquet')] == blobs[:2]


def test_images_of_a_data_set_keep_their_files(folder):
    datasets = pytest.importorskip('datasets')
    paths = [str(folder / 'pictures' / f'{n}.png') for n in range(3)]
    dataset = datasets.Dataset.from_dict({'image': paths, 'label': [0, 1, 0]}).cast_column('image', datasets.Image())
    assert [document.blob for document in read_data(dataset)] == [picture(n) for n in range(3)]
    rows = [{'image': Image.open(path), 'label': n} for n, path in enumerate(paths)]

    class Decoded(list):
        column_names = ['image', 'label']  # noqa: RUF012

    [document, *_] = read_data(Decoded(rows))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(document.blob))), np.asarray(rows[0]['image']))


def test_images_may_stay_where_they_are(folder):
    path = table(folder, ('pictures/0.png', 'a'), ('https://example.org/a.png', 'a'))
    documents = list(read_data(path, CSVOptions(convert_to_blob=False)))
    assert [document.blob for document in documents] == [None, None]
    assert [document.uri for document in documents] == [str(folder / 'pictures/0.png'), 'https://example.org/a.png']


def test_documents_are_given_what_their_uri_names(folder, monkeypatch):
    monkeypatch.chdir(folder)
    given = [
        Document(uri='pictures/0.png', tags={LABEL: 'a'}),
        Document(chunks=[Content(text='red'), Content(uri=str(folder / 'pictures/1.png'))]),
    ]
    first, second = read_data(given)
    assert (first.blob, first.uri, first.modality, first.id) == (picture(0), 'pictures/0.png', 'image', given[0].id)
    assert (second.chunks[0].text, second.chunks[1].blob) == ('red', picture(1))
    assert given[0].blob is None and given[1].chunks[1].blob is None
    with pytest.raises(DataError, match=r"item 0 of the data \(id 'odd'\): there is no file nothing.png"):
        list(read_data([Document(id='odd', uri='nothing.png')]))


def test_data_uris_are_their_content(folder):
    uri = 'data:image/png;base64,' + base64.b64encode(picture(7)).decode()
    documents = list(read_data(table(folder, (uri, 'a'), (uri, 'a'))))
    assert [(document.blob, document.uri) for document in documents] == [(picture(7), None)] * 2
    with pytest.raises(DataError, match='line 2, column 1: the data: URI .* is not base64'):
        list(read_data(table(folder, (uri, 'a'), (uri + '!', 'a'))))


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'json'])
def test_images_are_read_in_constant_memory(folder, kind):
    count, size = 40, 1 << 20
    noise = np.random.default_rng(0).bytes(size)
    if kind == 'csv':
        (folder / 'large.png').write_bytes(picture(0) + noise)
        path = table(folder, *(('large.png', f'kind {n % 2}') for n in range(count)))
    elif kind == 'parquet':
        images = [picture(0) + noise + bytes([n]) for n in range(count)]
        path = folder / 'large.parquet'
        pq.write_table(pa.table({'image': images, 'label': ['a'] * count}), path, row_group_size=10)
        del images
    else:
        uri = 'data:image/png;base64,' + base64.b64encode(picture(0) + noise).decode()
        path = folder / 'large.jsonl'
        with path.open('w') as file:
            file.writelines(json.dumps({'image': uri, 'label': n % 2}) + '\n' for n in range(count))
    documents = read_data(path)
    next(documents)
    tracemalloc.start()
    left = sum(1 for _ in documents)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert left == count - 1 and used < 20 * size


def test_meshes_become_clouds_of_points(folder):
    path = table(folder, ('solid.off', 'a'), ('solid.off', 'b'))
    first, second = read_data(path)
    assert first.tensor.shape == (2048, 3) and first.modality == 'mesh' and first.uri == 'solid.off'
    np.testing.assert_array_equal(first.tensor, second.tensor)
    assert next(read_data(path, CSVOptions(point_cloud_size=64))).tensor.shape == (64, 3)
    kept = next(read_data(path, CSVOptions(create_point_clouds=False)))
    assert (kept.blob, kept.tensor, kept.modality) == (OFF, None, 'mesh')


def test_a_damaged_mesh_is_named(folder):
    (folder / 'odd.off').write_bytes(b'OFF\nnothing')
    with pytest.raises(DataError, match='table.csv, line 2, column 1: the mesh '):
        list(read_data(table(folder, ('solid.off', 'a'), ('odd.off', 'a'))))


def test_images_are_fetched_from_urls(folder, server):
    server.files = {f'/{n}': picture(n) for n in range(50)}
    delays = iter(range(50))

    def slow(handler):  # the first ones answer last
        time.sleep(0.05 / (1 + next(delays)))
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(picture(0))

    server.files['/0'] = slow
    path = table(folder, *((f'{server.url}/{n}', f'kind {n % 2}') for n in range(50)))
    documents = list(read_data(path))
    assert [document.blob for document in documents] == [picture(n) for n in range(50)]
    assert documents[3].uri == f'{server.url}/3'
    assert len(list(read_data(path, CSVOptions(size=3)))) == 3


def test_rows_before_a_url_that_fails_are_yielded(folder, server):
    server.files = {'/0': picture(0), '/1': picture(1)}
    documents = read_data(table(folder, *((f'{server.url}/{n}?key=secret', 'a') for n in range(3))))
    server.files = {f'/{n}?key=secret': picture(n) for n in range(2)}
    assert [next(documents).blob for _ in range(2)] == [picture(0), picture(1)]
    with pytest.raises(
        DataError, match=r'table.csv, line 3, column 1: .*/2 cannot be fetched: HTTP status 404'
    ) as caught:
        next(documents)
    assert 'secret' not in str(caught.value)


def test_fetching_has_limits(folder, server, monkeypatch):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with pytest.raises(OSError):  # the other side goes
            while True:
                handler.wfile.write(bytes(1 << 16))

    def drop(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', '1000')
        handler.end_headers()
        handler.wfile.write(b'x' * 10)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b'x')
            time.sleep(0.02)

    def lead_to(address):
        def redirect(handler):
            handler.send_response(302)
            handler.send_header('Location', address)
            handler.end_headers()

        return redirect

    (folder / 'secret.png').write_bytes(picture(9))
    server.files = {
        '/endless': endless,
        '/drop': drop,
        '/drip': drip,
        '/empty': b'',
        '/file': lead_to((folder / 'secret.png').as_uri()),
        '/ftp': lead_to('ftp://127.0.0.1:1/a.png'),
        '/moved': lead_to('/here'),
        '/here': picture(5),
    }
    monkeypatch.setitem(links.MAX_BYTES, 'image', 1 << 20)

    def fetch(path):
        return links.Links().read(server.url + path, 'image')

    assert fetch('/moved') == picture(5)
    for path, problem in [
        ('/endless', 'is larger than the limit of 1 MiB'),
        ('/drop', 'broke off after 10 of 1000 bytes'),
        ('/empty', 'is empty'),
        ('/file', 'HTTP status 302|cannot be fetched'),
        ('/ftp', 'cannot be fetched'),
    ]:
        with pytest.raises(DataError, match=problem):
            fetch(path)
    monkeypatch.setattr(links, 'DEADLINE', 0.1)
    with pytest.raises(DataError, match='took longer than'):
        fetch('/drip')


def test_redirects_keep_to_the_schemes(server):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header('Location', 'https://127.0.0.1:1/a.png')
        handler.end_headers()

    server.files = {'/moved': redirect}
    with pytest.raises(DataError, match='/moved leads to https://, and such URIs are not read here'):
        links.Links(schemes=('http',)).read(f'{server.url}/moved', 'image')
    with pytest.raises(DataError, match='Connection refused'):
        links.Links(schemes=('http', 'https')).read(f'{server.url}/moved', 'image')


def test_meshes_without_trimesh_name_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'trimesh', None)
    path = table(folder, ('solid.off', 'x'), ('solid.off', 'x'))
    with pytest.raises(DataError, match=r'line 1, column 1: meshes .*pip install "finetuner\[inference\]"'):
        list(read_data(path))
    assert next(read_data(path, CSVOptions(create_point_clouds=False))).blob == OFF


def test_files_have_limits(folder, monkeypatch):
    monkeypatch.setitem(links.MAX_BYTES, 'image', 1 << 20)
    (folder / 'large.png').write_bytes(bytes((1 << 20) + 1))
    (folder / 'empty.png').write_bytes(b'')
    os.mkfifo(folder / 'pipe.png')
    here = links.Links(folder)
    for name, problem in [
        ('large.png', 'larger than the limit of 1 MiB'),
        ('empty.png', 'is empty'),
        ('pipe.png', 'there is no file'),
        ('pictures', 'there is no file'),
        ('a\0b', 'is no path'),
        ('file://elsewhere/a.png', 'on another machine'),
    ]:
        with pytest.raises(DataError, match=problem):
            here.read(name, 'image')


@pytest.mark.parametrize(
    ('path', 'sentence'),
    [
        (f'{300 * "a"}.png', "'a{80}…' is no path that can be read: File name too long"),
        ('circle.png', "'circle.png' is no path that can be read: "),
        ('~nobody-of-this-name/a.png', 'is no path that can be read: Could not determine home'),
        ('file:///[a]/b.png', 'there is no file'),
        ('file://[a/b.png', 'is no path that can be read: Invalid IPv6 URL'),
        ('/a\ud800.png', r"'/a\\ud800.png' is no path that can be read: "),
    ],
)
def test_what_no_path_can_be_is_an_error_of_the_data(folder, path, sentence):
    (folder / 'circle.png').symlink_to('circle.png')
    here = links.Links(folder)
    for read in (here.path, lambda uri: here.read(uri, 'image')):
        with pytest.raises(DataError, match=sentence):
            read(path)
    if path.isascii():
        with pytest.raises(DataError, match=f'table.csv, line 1, column 1: .*{sentence}'):
            list(read_data(table(folder, (path, 'x')), task='image-to-image'))


def test_schemes_may_be_limited():
    limited = links.Links(schemes=('https',))
    for uri in ('http://127.0.0.1/a.png', 's3://bucket/a.png', 'memory://a.png'):
        with pytest.raises(DataError, match='URIs are not read here'):
            limited.read(uri, 'image')


@pytest.mark.parametrize(
    ('uri', 'modality'),
    [
        ('a/B.JPG', 'image'),
        ('https://example.org/a.webp?size=3#x', 'image'),
        ('https://example.org/a', None),
        ('chair.glb', 'mesh'),
        ('data:model/stl;base64,AAAA', 'mesh'),
        ('data:image/gif,x', 'image'),
        ('data:,hello', None),
        ('data: of all, the best.png', 'image'),
        ('notes.txt', None),
        ('', None),
    ],
)
def test_the_modality_of_a_uri(uri, modality):
    assert modality_of_uri(uri) == modality


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM'])
def test_the_modality_of_a_picture(format):
    assert modality_of_bytes(picture(3, format)) == 'image'


@pytest.mark.parametrize('format', ['obj', 'off', 'ply', 'stl', 'stl_ascii', 'glb'])
def test_the_modality_of_a_mesh(format):
    trimesh = pytest.importorskip('trimesh')
    content = trimesh.creation.box().export(file_type=format)
    assert modality_of_bytes(content.encode() if isinstance(content, str) else content) == 'mesh'


def test_the_modality_of_other_bytes():
    assert modality_of_bytes(b'%PDF-1.7') is modality_of_bytes(b'BMessage') is modality_of_bytes(b'') is None


def test_a_csv_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, 'MAX_LINE', 100)
    (tmp_path / 'data.csv').write_text('text,label\na,b\n' + 200 * 'x')
    with pytest.raises(DataError, match=r'data\.csv, line 3: the line is longer than'):
        list(read_data(tmp_path / 'data.csv'))


def test_a_picture_and_its_text_come_in_one_order():
    def pair(*chunks):
        return Document(chunks=[Content(**chunk) for chunk in chunks])

    text, image = {'text': 'a shirt', 'modality': 'text'}, {'blob': picture(7), 'modality': 'image'}
    found = list(read_data([pair(text, image), pair(image, text)]))
    assert [[chunk.modality for chunk in document.chunks] for document in found] == 2 * [['text', 'image']]


def test_urls_of_documents_are_fetched_several_at_a_time(monkeypatch):
    at_once, most = [], []

    def fetch(self, uri, kind):
        at_once.append(uri)
        most.append(len(at_once))
        time.sleep(0.05)
        at_once.remove(uri)
        return picture(7)

    monkeypatch.setattr(links.Links, 'read', fetch)
    documents = [Document(uri=f'https://example.com/{n}.png', tags={'finetuner_label': n}) for n in range(16)]
    found = list(read_data(documents))
    assert [document.tags['finetuner_label'] for document in found] == list(range(16))
    assert all(document.blob == picture(7) for document in found) and max(most) > 2
