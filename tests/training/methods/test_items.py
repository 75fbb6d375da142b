"""Items from everywhere, and nothing from where they are not."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from PIL import Image

from finetuner.excepts import DataError
from registry.click_records import SearchResult
from tests.training.clicks.conftest import session
from training.clicks.examples import judge, training_documents
from training.clicks.feedback import read_feedback
from training.clicks.options import ClickOptions
from training.methods.item_loading import load_items
from training.methods.items import BucketItems, FolderItems, InlineItems, WebItems


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (8, 8), colour).save(file, 'PNG')
    return file.getvalue()


def sessions(**metas):
    """One session that shows an item for each name, with this meta."""
    shown = session('q', list(metas))
    results = [SearchResult(name, None, meta) for name, meta in metas.items()]
    shown.search_results[:] = results
    return [shown]


def test_inline_texts(tmp_path):
    source = InlineItems(loader='inline', fields=['title', 'text'])
    found = load_items(
        source,
        sessions(
            a={'title': 'A', 'text': ' a text '}, b={'text': 'only'}, c={'title': 7.0}, d={}, e=None, f={'text': ''}
        ),
        tmp_path,
    )
    assert found.contents == {'a': 'A\na text', 'b': 'only', 'c': '7'}
    assert found.missing == dict.fromkeys('def', "meta has no 'title' or 'text'")


def test_a_number_says_where_a_file_is(tmp_path):
    (tmp_path / '132.txt').write_text('a text')
    source = FolderItems(loader='folder', root=str(tmp_path), address='num', suffix='.txt')
    found = load_items(source, sessions(a={'num': 132}, b={'num': 132.0}, c={'num': []}, d={}), tmp_path / 'cache')
    assert found.contents == {'a': 'a text', 'b': 'a text'}
    assert found.missing == {
        'c': "meta has a 'num' that is neither a text nor a number",
        'd': "meta has no 'num' that says where the file is",
    }


def test_the_last_that_is_said_of_an_item_counts(tmp_path):
    both = [*sessions(a={'text': 'old'}), *sessions(a={'text': 'new'})]
    assert load_items(InlineItems(loader='inline'), both, tmp_path).contents == {'a': 'new'}


def test_a_result_without_meta_says_nothing_of_its_item(tmp_path):
    shown = [*sessions(a={'text': 'a shoe'}), *sessions(a=None)]
    assert load_items(InlineItems(loader='inline'), shown, tmp_path).contents == {'a': 'a shoe'}


def test_no_item_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of 2 items can be read; 'a': meta has no 'text'"):
        load_items(InlineItems(loader='inline'), sessions(a={}, b={}), tmp_path)
    assert load_items(InlineItems(loader='inline'), [], tmp_path).contents == {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    root = tmp_path / 'home' / 'items'
    (root / 'deep').mkdir(parents=True)
    (root / 'a.txt').write_text('text a')
    (root / 'deep' / 'b.txt').write_text('text b')
    (root / 'latin.txt').write_bytes('für'.encode('latin-1'))
    (root / 'empty.txt').write_text('')
    (root / 'large.txt').write_text('x' * (1 << 20) + 'y')
    (root / 'red.png').write_bytes(png('red'))
    (tmp_path / 'home' / 'secret.txt').write_text('secret')
    (root / 'link.txt').symlink_to(tmp_path / 'home' / 'secret.txt')
    return root


@pytest.mark.parametrize('is_relative', [True, False])
def test_texts_of_a_folder(folder, tmp_path, is_relative):
    source = FolderItems(loader='folder', root='items' if is_relative else str(folder), suffix='.txt')
    found = load_items(
        source, sessions(**{'a': None, 'deep/b': {}, 'latin': {}, 'empty': {}, 'large': {}, 'no': {}}), tmp_path
    )
    assert found.contents == {'a': 'text a', 'deep/b': 'text b'}
    assert 'no UTF-8 text' in found.missing['latin'] and 'is empty' in found.missing['empty']
    assert 'larger than the limit of 1 MiB' in found.missing['large'] and 'there is no file' in found.missing['no']


@pytest.mark.parametrize(
    'address',
    ['../secret.txt', '{root}/../secret.txt', '/etc/passwd', 'link.txt', 'file:///etc/passwd', 'http://127.0.0.1/',
     'a\0b', 'deep/../../secret.txt', '~/x', 'data:text/plain,x', ''],
)  # fmt: skip
def test_no_address_leads_out_of_the_folder(folder, tmp_path, address):
    source = FolderItems(loader='folder', root=str(folder), address='file')
    found = load_items(source, sessions(a={'file': 'a.txt'}, b={'file': address.format(root=folder)}), tmp_path)
    assert found.contents == {'a': 'text a'}
    assert 'secret' not in found.contents.values()
    # whether it exists is not told
    assert str(tmp_path) not in found.missing['b'] or 'there is no file' in found.missing['b']


def test_images_of_a_folder_train_a_loss_of_triplets(folder, tmp_path, tiny_clip):
    from registry.shards import DatasetReader, write_shard

    (folder / 'blue.png').write_bytes(png('blue'))
    source = FolderItems(loader='folder', root='items', modality='image', suffix='.png')
    shown = session('red', ['red', 'blue', 'nothing'], ['red'])
    found = load_items(source, [shown], tmp_path / 'images')
    assert found.contents['red'].read_bytes() == png('red') and list(found.missing) == ['nothing']
    options = ClickOptions()
    judged = judge(read_feedback([shown]), options, found.contents)
    info = write_shard(training_documents(judged, options, found.contents, 'triplets'), tmp_path / 'shard.arrow')
    assert (info.shape, info.modalities, info.linked) == ('triplets', ('text', 'image', 'image'), True)

    from training.backbone import load_for_training
    from training.config import FitConfig
    from training.data import open_examples, prepare
    from training.progress import Reporter

    config = FitConfig.from_arguments(model=str(tiny_clip), train_data='x', loss='CosineProbMarginRankingLoss')
    encoders = load_for_training(config, None)
    reader = DatasetReader([tmp_path / 'shard.arrow'], 'clicks')
    prepare(reader, encoders, tmp_path / 'features', Reporter(None))
    examples = open_examples(reader, tmp_path / 'features')
    assert [column.encoder for column in examples.columns] == ['clip-text', 'clip-vision', 'clip-vision']
    assert examples.scores.tolist() == [1]


def test_what_is_no_image_is_left_out(folder, tmp_path):
    source = FolderItems(loader='folder', root='items', modality='image', address='file')
    (folder / 'text.png').write_text('no image')
    found = load_items(source, sessions(a={'file': 'red.png'}, b={'file': 'text.png'}), tmp_path / 'images')
    assert list(found.contents) == ['a'] and found.missing == {'b': 'it is no image'}


class Web(NamedTuple):
    url: str
    asked: list[str]
    failures: dict[str, list[int | str]]


@pytest.fixture
def web():
    """A server with a shop and an admin page; the value is its URL, and the paths that were asked for. What is in its
    `failures`, by path, comes before the page."""
    pages = {'/shop/a%20b.txt': b'text a', '/shop/deep/c.txt': b'text c', '/admin/key.txt': b'secret'}
    asked, failures = [], {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if failures.get(self.path):
                self.fail(failures[self.path].pop())
                return
            if self.path == '/shop/away.txt':
                self.send_response(302)
                self.send_header('Location', 'file:///etc/passwd')
                self.end_headers()
                return
            content = pages.get(self.path)
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content or b'')

        def fail(self, failure):
            if failure == 'reset':
                self.connection.close()
                return
            self.send_response(200 if failure == 'broken off' else failure)
            self.send_header('Content-Length', '6')
            self.end_headers()
            self.wfile.write(b'te')

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Web(f'http://127.0.0.1:{server.server_port}/', asked, failures)
        server.shutdown()


def test_texts_of_a_web_server(web, tmp_path):
    url, *_ = web
    source = WebItems(loader='http', base=f'{url}shop/', address='url')
    found = load_items(
        source,
        sessions(
            a={'url': 'a b.txt'},
            b={'url': f'{url}shop/a%20b.txt'},
            c={'url': 'deep/c.txt'},
            d={'url': 'no.txt'},
            e={'url': 'away.txt'},
        ),
        tmp_path,
    )
    assert found.contents == {'a': 'text a', 'b': 'text a', 'c': 'text c'}
    assert 'HTTP status 404' in found.missing['d'] and 'cannot be fetched' in found.missing['e']


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr('training.methods.item_loading.PAUSES', (0.01, 0.01, 0.01))


@pytest.mark.parametrize('failure', [503, 500, 429, 'reset', 'broken off'])
def test_a_web_server_that_is_away_for_a_moment_is_asked_again(web, short_pauses, tmp_path, failure):
    url, asked, failures = web
    failures['/shop/a%20b.txt'] = [failure] * 2
    source = WebItems(loader='http', base=f'{url}shop/', address='url')
    found = load_items(source, sessions(a={'url': 'a b.txt'}, c={'url': 'deep/c.txt'}, d={'url': 'no.txt'}), tmp_path)
    assert found.contents == {'a': 'text a', 'c': 'text c'} and list(found.missing) == ['d']
    assert [asked.count(f'/shop/{name}') for name in ('a%20b.txt', 'deep/c.txt', 'no.txt')] == [3, 1, 1]


def test_a_web_server_that_stays_away_is_left_alone_in_the_end(web, short_pauses, tmp_path):
    url, asked, failures = web
    failures['/shop/a%20b.txt'] = [503] * 9
    source = WebItems(loader='http', base=f'{url}shop/', address='url')
    found = load_items(source, sessions(a={'url': 'a b.txt'}, c={'url': 'deep/c.txt'}), tmp_path)
    assert list(found.contents) == ['c'] and 'HTTP status 503' in found.missing['a'] and len(asked) == 5


@pytest.mark.parametrize(
    'address',
    ['../admin/key.txt', 'x/../../admin/key.txt', '/admin/key.txt', '//127.0.0.1/admin/key.txt', '{url}admin/key.txt',
     '{url}shop/../admin/key.txt', '{url}shop/%2e%2e/admin/key.txt', '{url}shop/..%2fadmin/key.txt',
     '..\\admin\\key.txt', 'file:///etc/passwd', '%2e%2e/admin/key.txt', '@127.0.0.1/admin/key.txt',
     '?/../../admin/key.txt'],
)  # fmt: skip
def test_no_address_leads_to_another_place_of_the_web(web, tmp_path, address):
    url, asked, _ = web
    source = WebItems(loader='http', base=f'{url}shop/', address='url')
    found = load_items(source, sessions(a={'url': 'a b.txt'}, b={'url': address.format(url=url)}), tmp_path)
    assert list(found.contents) == ['a']
    assert all(path.startswith('/shop/') and '/../' not in path for path in asked)


@pytest.fixture(scope='module')
def s3():
    """A server of the S3 protocol with two buckets."""
    pytest.importorskip('moto.server')
    import boto3

    from tests.registry.test_s3 import S3Server

    server = S3Server()
    keys = {'aws_access_key_id': 'test', 'aws_secret_access_key': 'test', 'region_name': 'us-east-1'}
    client = boto3.client('s3', endpoint_url=server.url, **keys)
    for bucket in ('shop', 'private'):
        client.create_bucket(Bucket=bucket)
    for bucket, key, content in (
        ('shop', 'items/a.png', png('red')),
        ('shop', 'items/large.png', b'\x89PNG\r\n\x1a\n' + b'0' * (64 << 20)),
        ('shop', 'secret.png', png('blue')),
        ('private', 'items/a.png', png('blue')),
    ):
        client.put_object(Bucket=bucket, Key=key, Body=content)
    yield server
    server.close()


@pytest.fixture
def bucket(s3, monkeypatch):
    """Its images."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'test')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'test')
    monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    return BucketItems(loader='s3', bucket='shop', prefix='items', endpoint=s3.url, modality='image', address='file')


@pytest.mark.parametrize('failure', [('SlowDown', 503), ('InternalError', 500), ('RequestTimeout', 408)])
def test_a_bucket_that_is_away_for_a_moment_is_asked_again(
    s3, bucket, short_pauses, tmp_path, monkeypatch, caplog, failure
):
    monkeypatch.setattr('s3fs.core.S3FileSystem.retries', 1)
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    failures = [failure] * 2
    monkeypatch.setattr(s3, 'failure', failure)
    monkeypatch.setattr(s3, 'fails', lambda request: request.path.endswith('/a.png') and failures and failures.pop())
    found = load_items(bucket, sessions(a={'file': 'a.png'}, b={'file': 'no.png'}), tmp_path)
    assert list(found.contents) == ['a'] and found.missing == {'b': 'there is no such object'}
    assert caplog.messages[:2] == ['1 of 2 items cannot be read now: trying again'] * 2 and not failures


def test_images_of_a_bucket(bucket, tmp_path):
    found = load_items(
        bucket,
        sessions(
            a={'bucket': 'shop', 'file': 'a.png'},
            b={'file': 'no.png'},
            c={'bucket': 'private', 'file': 'a.png'},
            d={'file': '../secret.png'},
            e={'file': '/secret.png'},
            f={'file': 'large.png'},
            g={'bucket': 'shop'},
        ),
        tmp_path,
    )
    assert list(found.contents) == ['a'] and found.contents['a'].read_bytes() == png('red')
    assert found.missing == {
        'b': 'there is no such object',
        'c': 'it is in a bucket that is not that of the items',
        'd': 'it leads out of where the items are',
        'e': 'it leads out of where the items are',
        'f': 'it is larger than the limit of 64 MiB',
        'g': "meta has no 'file' that says where the file is",
    }
