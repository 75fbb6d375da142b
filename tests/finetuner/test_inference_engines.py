"""Both engines: the same embeddings, in the order of the request, from wherever the model comes."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer

from finetuner.artifact import ModelInfo, open_artifact, pack
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, DataError, SelectModelRequired
from finetuner.inference import load_engine, onnx_engine
from finetuner.inference.backbones import load_encoder
from finetuner.inference.by_size import BySizeEngine
from finetuner.inference.digest import digest_model
from finetuner.inference.loading import named_installs
from finetuner.inference.onnx_engine import ONNXRuntimeInferenceEngine
from finetuner.inference.precision import DTYPES
from finetuner.inference.torch_engine import TorchInferenceEngine
from training.export import export

TEXTS = ['where is my card', '', 'My card is LOST!', 'the ' * 300, 'Überraschung, 漢字 🙂', 'a', ' ', '[SEP] my [PAD]']


@pytest.fixture(scope='module', params=[True, False], ids=['onnx', 'torch'])
def engine(request, tiny_artifact, tmp_path_factory):
    opened = open_artifact(tiny_artifact, cache=tmp_path_factory.mktemp('cache'))
    return load_engine(opened, is_onnx=request.param)


@pytest.fixture
def model_directory(tiny_artifact, tmp_path):
    """A copy of the model's directory in the artifact, with its ONNX model, that may be changed."""
    return Path(shutil.copytree(open_artifact(tiny_artifact).model_directory('model'), tmp_path / 'model'))


def run_python(program, **environment):
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env={**environment, 'HF_HUB_OFFLINE': '1'}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def random_texts(count):
    chance = random.Random(0)
    return [
        ' '.join(chance.choices(['the', 'card', 'my', 'is', 'lost', 'x'], k=chance.randrange(30))) for _ in range(count)
    ]


def test_both_equal_sentence_transformers(engine, tiny_model):
    expected = SentenceTransformer(str(tiny_model), device='cpu').encode(TEXTS, show_progress_bar=False)
    embeddings = engine.encode_texts(TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(TEXTS), engine.dim) == (8, 24)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_results_do_not_depend_on_the_batches_and_come_in_order(engine, monkeypatch):
    texts = random_texts(40)
    alone = np.concatenate([engine.encode_texts([text]) for text in texts])
    for size in (7, 40, 1000):
        np.testing.assert_allclose(engine.encode_texts(texts, batch_size=size), alone, rtol=0, atol=1e-5)
    monkeypatch.setattr('finetuner.inference.engine._WINDOW', 10)
    np.testing.assert_allclose(engine.encode_texts(texts, batch_size=3), alone, rtol=0, atol=1e-5)


def test_batches_hold_texts_of_similar_length(engine, monkeypatch):
    batches = []

    def noting(embed):
        return lambda rows, **options: batches.append([len(row) for row in rows]) or embed(rows, **options)

    for name in ('embed', 'embed_beside'):  # alone, and at the same time as others
        monkeypatch.setattr(engine, name, noting(getattr(engine, name)))
    engine.encode_texts(random_texts(640), batch_size=32)
    assert sum(map(len, batches)) == 640
    batches.sort(key=lambda batch: (max(batch), min(batch)), reverse=True)  # some are computed at the same time
    assert all(min(before) >= max(after) for before, after in itertools.pairwise(batches))
    if getattr(engine, 'packs', False):  # nothing is padded: as many texts as have so many tokens
        assert all(sum(batch) <= 4096 for batch in batches) and len(batches) <= 4
        return
    assert all(len(batch) <= 32 and len(batch) * max(batch) <= 256 for batch in batches) and len(batches) <= 50
    # in the order of the request it would be over 40 %
    assert 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches) < 0.05


@pytest.fixture
def of_two_threads(tiny_artifact):
    """An engine with onnxruntime, and features of texts that it takes in several batches, all of another length."""
    engine = load_engine(tiny_artifact, is_onnx=True, intra_op_num_threads=2)
    texts = [f'{"card " * length}' for length in (2, 4, 8, 16)]
    return engine, engine.features(texts, 0, None, str)


def test_small_batches_are_computed_at_the_same_time(of_two_threads, monkeypatch):
    engine, features = of_two_threads
    run, both = engine.run, threading.Barrier(2)

    def run_beside_another(inputs):
        both.wait(10)  # breaks where each is computed once the one before it is done
        return run(inputs)

    expected = np.vstack([engine.embed([row]) for row in features])
    monkeypatch.setattr(engine, 'run', run_beside_another)
    parts = list(engine.embed_parts(features, 32))
    assert len(parts) == len(features)
    found = np.empty_like(expected)
    for part in parts:
        found[part.rows] = part.embeddings
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_batch_has_all_threads(of_two_threads, monkeypatch):
    engine, features = of_two_threads
    threads = []
    run = engine.run
    monkeypatch.setattr(engine, 'run', lambda inputs: threads.append(threading.get_ident()) or run(inputs))
    list(engine.embed_parts(features[:1], 32))
    assert threads == [threading.get_ident()]


def test_batches_of_onnxruntime_are_small(tiny_artifact):
    engine = load_engine(tiny_artifact, is_onnx=True)
    features = engine.features(['my card ' * length for length in (1, 20, 20, 20, 60) * 20], 0, None, str)
    batches = list(engine.split(features, 32))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(features)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(len(features[row]) for row in rows) <= 256


def test_no_texts_and_empty_texts(engine):
    empty = engine.encode_texts([])
    assert (empty.shape, empty.dtype) == ((0, 24), np.float32)
    assert np.isfinite(engine.encode_texts([''])).all()


def test_texts_are_cut_at_the_longest_length(engine):
    assert engine.max_length == 32
    whole, cut = engine.encode_texts(['the ' * 1000, 'the ' * 30])
    np.testing.assert_allclose(whole, cut, rtol=0, atol=1e-5)
    assert abs(whole - engine.encode_texts(['the ' * 29])[0]).max() > 1e-5


@pytest.mark.parametrize(
    ('texts', 'match'),
    [
        ('one text', 'expected a list of texts'),
        (['a', None], 'text 1 is not a text but NoneType'),
        (['a', 'b\ud800'], r"text 1 is not valid Unicode: '\\ud800' at character 1"),
    ],
)
def test_what_is_not_text_is_refused_before_any_work(engine, monkeypatch, texts, match):
    monkeypatch.setattr(engine, 'run', lambda inputs: pytest.fail('it worked'))
    with pytest.raises(DataError, match=match):
        engine.encode_texts(texts)


def test_documents_get_their_embeddings_in_place(engine):
    documents = DocumentArray([Document(text=text, tags={'n': n}) for n, text in enumerate(TEXTS)])
    before = list(documents)
    assert engine.encode(documents, batch_size=3) is documents
    assert all(document is earlier for document, earlier in zip(documents, before, strict=True))
    np.testing.assert_allclose(documents.embeddings, engine.encode_texts(TEXTS), rtol=0, atol=1e-5)
    assert engine.encode(DocumentArray()) == DocumentArray()


@pytest.mark.parametrize(
    ('bad', 'match'), [({'uri': 'x.txt'}, 'has no text to encode'), ({'text': '\udfff'}, 'is not valid Unicode')]
)
def test_a_document_without_text_is_named_and_nothing_is_done(engine, bad, match):
    documents = DocumentArray([Document(text='good'), Document(id='this-one', **bad)])
    with pytest.raises(DataError, match=rf"document 1 \(id 'this-one'\) {match}"):
        engine.encode(documents)
    assert documents[0].embedding is None


@pytest.mark.parametrize('size', [0, -1, 1.5, True])
def test_batch_sizes_must_be_positive_integers(engine, tiny_artifact, size):
    with pytest.raises(ValueError, match='must be a positive integer'):
        engine.encode_texts(['a'], batch_size=size)
    with pytest.raises(ValueError, match='must be a positive integer'):
        load_engine(tiny_artifact, batch_size=size)


def test_threads_may_encode_at_the_same_time(engine):
    requests = [random_texts(n + 1)[-20:] for n in range(20)]
    expected = [engine.encode_texts(texts) for texts in requests]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(engine.encode_texts, requests), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_onnx_needs_neither_torch_nor_transformers(tiny_artifact, tmp_path):
    program = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'transformers', 'sentence_transformers', 'docarray', 'jina'):
            raise ModuleNotFoundError(f'{{name}} is blocked', name=name)
sys.meta_path.insert(0, Blocker())
from finetuner.inference import encode, get_model
print(encode(get_model({str(tiny_artifact)!r}), ['where is my card', '']).shape)
"""
    assert run_python(program, FINETUNER_HOME=str(tmp_path)) == '(2, 24)'


@pytest.mark.parametrize('call', ['load_engine({}, is_onnx=False)', 'get_model({}, is_onnx=False)'])
def test_a_missing_library_is_named_with_the_command_that_installs_it(tiny_artifact, tmp_path, call):
    program = f"""
import sys
sys.modules['torch'] = None
from finetuner.inference import get_model, load_engine
try:
    {call.format(repr(str(tiny_artifact)))}
except ModuleNotFoundError as error:
    print(error)
"""
    expected = 'torch is not installed: pip install "finetuner[torch]"'
    assert run_python(program, FINETUNER_HOME=str(tmp_path)) == expected


@pytest.mark.parametrize(
    ('library', 'extra'),
    [('trimesh', 'inference'), ('ftfy', 'inference'), ('timm', 'torch'), ('torchvision.io', 'torch'),
     ('open_clip', 'torch'), ('safetensors', 'torch'), ('PIL', 'inference')],
)  # fmt: skip
def test_the_extra_of_every_library_is_named(library, extra):
    name = library.partition('.')[0]
    expected = rf'^{name} is not installed: pip install "finetuner\[{extra}\]"$'
    with pytest.raises(ModuleNotFoundError, match=expected), named_installs():
        raise ModuleNotFoundError(f'No module named {library!r}', name=library)


def test_importing_the_package_is_light():
    program = (
        "import sys, finetuner.inference; print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    assert run_python(program) == '[]'


def test_onnxruntime_is_the_default_where_there_is_an_onnx_model(tiny_artifact, tiny_model):
    assert isinstance(load_engine(tiny_artifact), ONNXRuntimeInferenceEngine)
    assert isinstance(load_engine(tiny_artifact, is_onnx=False), TorchInferenceEngine)
    assert isinstance(load_engine(tiny_model), TorchInferenceEngine)
    with pytest.raises(ValueError, match='has no model.onnx: load it with is_onnx=False'):
        load_engine(tiny_model, is_onnx=True)


def test_every_form_of_the_same_model_gives_the_same_embeddings(tiny_artifact, model_directory, engine):
    opened = open_artifact(tiny_artifact)
    for source in (tiny_artifact, str(tiny_artifact), opened, opened.directory, model_directory, str(model_directory)):
        np.testing.assert_allclose(
            load_engine(source).encode_texts(TEXTS), engine.encode_texts(TEXTS), rtol=0, atol=1e-5
        )


def test_a_pretrained_model_by_its_name():
    engine = load_engine('all-minilm-l6-v2')
    assert isinstance(engine, TorchInferenceEngine)
    assert engine.encode_texts(['where is my card']).shape == (1, 384)
    with pytest.raises(ValueError, match="'all-minilm-l6-v2' has no ONNX model"):
        load_engine('all-minilm-l6-v2', is_onnx=True)


def test_several_models_in_one_artifact(tiny_model, tmp_path):
    for name in ('clip-text', 'clip-vision'):
        shutil.copytree(tiny_model, tmp_path / 'models' / name)
    info = ModelInfo(dim=24, max_length=32)
    models = {'clip-text': info, 'clip-vision': info}
    path = pack(tmp_path, tmp_path / 'run.zip', name='run', config={}, metrics={}, models=models)
    assert load_engine(path, select_model='clip-text').dim == 24
    with pytest.raises(SelectModelRequired, match='clip-text, clip-vision'):
        load_engine(path)
    with pytest.raises(ValueError, match="no model 'clip-audio': it has clip-text, clip-vision"):
        load_engine(path, select_model='clip-audio')


def test_the_engine_is_a_part_of_the_digest_of_a_model(tiny_artifact):
    onnx, torch, default = (
        digest_model(load_engine(tiny_artifact, is_onnx=is_onnx), tiny_artifact) for is_onnx in (True, False, None)
    )
    assert onnx == default != torch


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_the_bits_give_nearly_the_same_embeddings_and_the_log_says_how_near(tiny_artifact, caplog, precision):
    caplog.set_level('INFO', 'finetuner')
    exact = load_engine(tiny_artifact, is_onnx=False)
    reduced = load_engine(tiny_artifact, precision=precision)
    assert isinstance(reduced, TorchInferenceEngine)
    assert reduced.packs == exact.packs
    assert {p.dtype for p in reduced.encoder.backbone.parameters()} == {DTYPES[precision]}
    found, expected = reduced.encode_texts(TEXTS), exact.encode_texts(TEXTS)
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)
    cosine = float(re.search(rf'computing in {precision}: the mean cosine .* is ([\d.]+)', caplog.text)[1])
    assert 0.999 < cosine <= 1
    assert digest_model(reduced, tiny_artifact) != digest_model(exact, tiny_artifact)


def test_a_precision_that_is_none_or_not_of_the_engine_is_refused(tiny_artifact):
    with pytest.raises(ValueError, match="precision is 'int4': choose fp32, bf16, fp16"):
        load_engine(tiny_artifact, precision='int4')
    with pytest.raises(ValueError, match="precision 'bf16' is of torch: give is_onnx=False"):
        load_engine(tiny_artifact, precision='bf16', is_onnx=True)


@pytest.mark.parametrize('slow', [ONNXRuntimeInferenceEngine, TorchInferenceEngine])
def test_the_faster_engine_is_found_by_trying(tiny_artifact, monkeypatch, caplog, slow):
    caplog.set_level('INFO', 'finetuner')
    slow_with(monkeypatch, slow, lambda count: True)
    engine = load_engine(tiny_artifact, choices={})
    assert not isinstance(engine, slow)
    rates = re.search(r'chose (\w+): onnxruntime embeds (\d+) samples per second here, torch (\d+)', caplog.text)
    assert rates[1] == type(engine).__name__
    assert (int(rates[2]) < int(rates[3])) == (slow is ONNXRuntimeInferenceEngine)


def slow_with(monkeypatch, engine, is_slow):
    def slowly(embed):
        def embed_slowly(self, features, **options):
            time.sleep(0.3 if is_slow(len(features)) else 0)
            return embed(self, features, **options)

        return embed_slowly

    for name in ('embed', 'embed_beside'):
        if name == 'embed' or name in vars(engine):  # else it is `embed` that is called
            monkeypatch.setattr(engine, name, slowly(getattr(engine, name)))


def test_each_engine_gets_the_batches_in_which_it_is_faster(tiny_artifact, monkeypatch, caplog):
    caplog.set_level('INFO', 'finetuner')
    slow_with(monkeypatch, ONNXRuntimeInferenceEngine, lambda count: count > 4)
    slow_with(monkeypatch, TorchInferenceEngine, lambda count: count <= 4)
    engine = load_engine(tiny_artifact, choices={})
    assert isinstance(engine, BySizeEngine)
    assert f'onnxruntime is given batches of up to {engine.limit} tokens, torch all others' in caplog.text
    texts = [f'{word} card' for word in ('lost', 'my', 'where', 'is')] * 64
    expected = load_engine(tiny_artifact, is_onnx=False).encode_texts(texts)
    given = []
    for each in (engine.small, engine.large):
        monkeypatch.setattr(
            each, 'embed', lambda features, each=each, do=each.embed: given.append(each) or do(features)
        )
    alone = np.concatenate([engine.encode_texts([text]) for text in texts[:4]])
    np.testing.assert_allclose(alone, expected[:4], atol=1e-5)
    assert given == [engine.small] * 4
    np.testing.assert_allclose(engine.encode_texts(texts), expected, atol=1e-5)
    assert given[4:] and set(given[4:]) == {engine.large}


@pytest.mark.parametrize('slow', [ONNXRuntimeInferenceEngine, TorchInferenceEngine, None])
def test_a_model_of_the_same_shape_is_not_tried_again(tiny_artifact, tiny_model, tmp_path, monkeypatch, caplog, slow):
    caplog.set_level('INFO', 'finetuner')
    if slow is None:  # each is slow in its turn, and both are kept
        slow_with(monkeypatch, ONNXRuntimeInferenceEngine, lambda count: count > 4)
        slow_with(monkeypatch, TorchInferenceEngine, lambda count: count <= 4)
    else:
        slow_with(monkeypatch, slow, lambda count: True)
    encoder = load_encoder(tiny_model)
    encoder.backbone.embeddings.word_embeddings.weight.data.mul_(2)
    other = export(encoder, tmp_path / 'other')
    choices = {}
    first = load_engine(tiny_artifact, choices=choices)
    assert 'chose' in caplog.text
    caplog.clear()
    second = load_engine(other, choices=choices)
    assert 'samples per second' not in caplog.text
    assert type(second) is type(first)
    assert getattr(second, 'limit', None) == getattr(first, 'limit', None)
    texts = ['lost card', 'where is my card']
    expected = load_engine(other, is_onnx=False).encode_texts(texts)
    np.testing.assert_allclose(second.encode_texts(texts), expected, atol=1e-5)
    assert not np.allclose(first.encode_texts(texts), expected, atol=1e-3)


def test_engines_that_differ_are_never_mixed(tiny_artifact, monkeypatch):
    slow_with(monkeypatch, ONNXRuntimeInferenceEngine, lambda count: count > 4)
    slow_with(monkeypatch, TorchInferenceEngine, lambda count: count <= 4)
    embed = ONNXRuntimeInferenceEngine.embed
    choices = {}
    assert isinstance(load_engine(tiny_artifact, choices=choices), BySizeEngine)
    monkeypatch.setattr(ONNXRuntimeInferenceEngine, 'embed', lambda self, features: 1.001 * embed(self, features))
    assert isinstance(load_engine(tiny_artifact, choices={}), TorchInferenceEngine)
    assert isinstance(load_engine(tiny_artifact, choices=choices), TorchInferenceEngine)


def test_a_model_whose_library_is_not_installed_is_served_with_onnxruntime(tiny_artifact, monkeypatch, caplog):
    caplog.set_level('INFO', 'finetuner')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    monkeypatch.delitem(sys.modules, 'finetuner.inference.torch_engine')
    monkeypatch.delitem(sys.modules, 'finetuner.inference.backbones')
    monkeypatch.delitem(sys.modules, 'finetuner.inference.text_encoder')
    assert isinstance(load_engine(tiny_artifact, choices={}), ONNXRuntimeInferenceEngine)
    assert 'torch cannot load the model here: transformers is not installed' in caplog.text


def test_what_is_asked_for_is_not_measured(tiny_artifact, caplog):
    caplog.set_level('INFO', 'finetuner')
    assert isinstance(load_engine(tiny_artifact, choices={}, is_onnx=True), ONNXRuntimeInferenceEngine)
    assert isinstance(load_engine(tiny_artifact, choices={}, precision='bf16'), TorchInferenceEngine)
    assert 'chose' not in caplog.text


def test_one_model_ignores_select_model(tiny_artifact):
    assert load_engine(tiny_artifact, select_model='clip-vision').dim == 24


@pytest.mark.parametrize('source', ['no-such.zip', './nowhere', '/no/such/artifact', Path('nowhere')])
def test_artifacts_that_are_not_there(source):
    with pytest.raises(ArtifactError, match='there is no artifact'):
        load_engine(source)


def test_arguments_that_make_no_sense(tiny_artifact):
    with pytest.raises(ValueError, match="unknown device 'gpu': it is one of cpu, cuda"):
        load_engine(tiny_artifact, device='gpu')
    with pytest.raises(ValueError, match='intra_op_num_threads is -1: it cannot be negative'):
        load_engine(tiny_artifact, intra_op_num_threads=-1)


def test_an_onnx_model_of_another_kind_is_refused(model_directory, tiny_model):
    import onnx

    model = onnx.load(model_directory / 'model.onnx')
    (model.graph.output[0].name, renamed) = ('token_embeddings', model.graph.output[0].name)
    for node in model.graph.node:
        node.output[:] = ['token_embeddings' if name == renamed else name for name in node.output]
    onnx.save(model, model_directory / 'model.onnx')
    with pytest.raises(ValueError, match="model.onnx has no output 'sentence_embedding': load the directory with"):
        load_engine(model_directory)
    (model_directory / 'model.onnx').write_bytes(b'not a model')
    with pytest.raises(ValueError, match='onnxruntime cannot load .*model.onnx'):
        load_engine(model_directory)


def test_lower_case_and_length_are_read_without_torch_too(model_directory):
    tokenizer = json.loads((model_directory / 'tokenizer.json').read_text())
    tokenizer['normalizer'] = None
    (model_directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
    (model_directory / 'sentence_bert_config.json').write_text('{"max_seq_length": 9, "do_lower_case": true}')
    onnx, torch = load_engine(model_directory), load_engine(model_directory, is_onnx=False)
    assert onnx.max_length == torch.max_length == 9
    np.testing.assert_allclose(onnx.encode_texts(TEXTS), torch.encode_texts(TEXTS), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(onnx.encode_texts(['My CARD'])[0], onnx.encode_texts(['my card'])[0])


def test_onnxruntime_gets_the_thread_options(tiny_artifact):
    def options(**threads):
        return load_engine(tiny_artifact, **threads).session.get_session_options()

    assert options().intra_op_num_threads == 0
    assert options(omp_num_threads=3).intra_op_num_threads == 3
    assert options(omp_num_threads=3, intra_op_num_threads=2).intra_op_num_threads == 2
    parallel = options(inter_op_num_threads=2)
    assert parallel.inter_op_num_threads == 2
    assert parallel.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize('may_be_twice', [True, False])
def test_batches_that_are_enough_for_all_threads_share_none(tiny_artifact, monkeypatch, may_be_twice):
    monkeypatch.setattr(onnx_engine, '_MAX_TWICE', 1 << 30 if may_be_twice else 0)
    engine = load_engine(tiny_artifact, is_onnx=True, intra_op_num_threads=4)
    texts = [f'card {number} ' * (number % 4 + 25) for number in range(60)]
    one_by_one = np.concatenate([engine.encode_texts([text]) for text in texts])
    run, threads = engine._run, []

    def noting(session, inputs):
        threads.append(session.get_session_options().intra_op_num_threads)
        return run(session, inputs)

    monkeypatch.setattr(engine, '_run', noting)
    np.testing.assert_allclose(engine.encode_texts(texts), one_by_one, rtol=0, atol=1e-6)
    assert len(threads) >= 4 and set(threads) == {1 if may_be_twice else 4}
    threads.clear()
    np.testing.assert_allclose(engine.encode_texts(texts[:16]), one_by_one[:16], rtol=0, atol=1e-6)
    assert 1 < len(threads) < 4 and set(threads) == {4}


def test_onnxruntime_fuses_what_is_faster_so_and_waits_awake_for_a_moment(tiny_artifact, tmp_path):
    engine = load_engine(tiny_artifact, is_onnx=True)
    options = engine.session.get_session_options()
    assert options.get_session_config_entry('session.intra_op.spin_duration_us') == '20'
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    onnx_engine._start(open_artifact(tiny_artifact).model_directory('model') / 'model.onnx', options, 'cpu', 0)
    kinds = {node.op_type for node in onnx.load(tmp_path / 'optimized.onnx').graph.node}
    assert {'Attention', 'BiasGelu', 'LayerNormalization'} <= kinds
    assert 'SkipLayerNormalization' not in kinds


def test_the_threads_of_onnxruntime_are_counted(tiny_artifact, tmp_path):
    program = f"""
import os
from finetuner.inference import load_engine
load_engine({str(tiny_artifact)!r}, intra_op_num_threads=1)
before = len(os.listdir('/proc/self/task'))
kept = load_engine({str(tiny_artifact)!r}, intra_op_num_threads=1)
one = len(os.listdir('/proc/self/task')) - before
kept = load_engine({str(tiny_artifact)!r}, intra_op_num_threads=4)
print(one, len(os.listdir('/proc/self/task')) - before)
"""
    # the calling thread is one of them
    assert run_python(program, FINETUNER_HOME=str(tmp_path)) == '0 3'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['omp_num_threads', 'intra_op_num_threads'])
def test_torch_gets_the_thread_options(tiny_model, name):
    program = f"""
import torch
from finetuner.inference import load_engine
load_engine({str(tiny_model)!r}, {name}=3)
print(torch.get_num_threads())
"""
    assert run_python(program, OMP_NUM_THREADS='2') == '3'


@pytest.mark.slow
def test_cuda_where_there_is_none(tiny_artifact, tmp_path):
    program = f"""
import warnings
from finetuner.inference import load_engine
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    print(load_engine({str(tiny_artifact)!r}, device='cuda').encode_texts(['a']).shape)
print(caught[0].category.__name__, caught[0].message)
try:
    load_engine({str(tiny_artifact)!r}, device='cuda', is_onnx=False)
except RuntimeError as error:
    print(error)
print(load_engine({str(tiny_artifact)!r}, device=None, is_onnx=False).device)
"""
    lines = run_python(program, FINETUNER_HOME=str(tmp_path), CUDA_VISIBLE_DEVICES='').splitlines()
    assert lines[0] == '(1, 24)'
    assert lines[1].startswith(
        "RuntimeWarning device 'cuda' was asked for, but this onnxruntime has no CUDA: install onnx"
    )
    assert lines[2] == "device 'cuda' was asked for, but torch finds no CUDA device: use device='cpu'"
    assert lines[3] == 'cpu'
