"""What an export leaves behind works in other people's libraries, with the same embeddings."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

import training.export
from finetuner.artifact import ModelInfo, open_artifact
from finetuner.inference import load_engine
from finetuner.inference.backbones import load_encoder, load_encoders, save_encoders
from finetuner.inference.mlp_encoder import MLPEncoder
from finetuner.inference.point_encoder import PointEncoder
from finetuner.inference.text_encoder import TextEncoder
from training.export import build_artifact, check_size, export
from training.parity import compare
from training.samples import random_features

TEXTS = [
    'I lost my card yesterday, what now?',
    '',
    'Überweisung nach Österreich 漢字 🙂',
    'word ' * 1000,
    *(f'how do I change my PIN {"please " * count}' for count in range(12)),
]


@pytest.fixture(scope='module')
def encoder():
    """all-MiniLM-L6-v2 with its weights moved a little, as training does."""
    encoder = TextEncoder.load('all-minilm-l6-v2')
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.01 * weight.std(correction=0) * torch.randn_like(weight)
    return encoder


@pytest.fixture(scope='module')
def artifact(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp('export')
    metrics = {'before': {'recall_at_k': 0.5}, 'after': {'recall_at_k': 0.75}}
    path = build_artifact(
        {'model': encoder}, name='run', config={'epochs': 1}, metrics=metrics, target=directory / 'run.zip'
    )
    assert list(directory.iterdir()) == [path]
    return open_artifact(path, cache=directory / 'cache')


@pytest.fixture(scope='module')
def expected(encoder):
    """float32 [N, 384], each text on its own."""
    with torch.no_grad():
        rows = [encoder(**encoder.tokenizer([text], truncation=True, return_tensors='pt')) for text in TEXTS]
    return torch.cat(rows).numpy()


def random_inputs(batch, length, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(1000, 20_000, (batch, length))
    return {'input_ids': ids, 'attention_mask': np.ones_like(ids), 'token_type_ids': np.zeros_like(ids)}


def test_metadata_of_the_artifact(artifact):
    assert artifact.name == 'run'
    assert artifact.config == {'epochs': 1}
    assert artifact.metrics['after'] == {'recall_at_k': 0.75}
    assert artifact.models == {'model': ModelInfo(384, 256, 'text-to-text', ('text',))}


def test_plain_sentence_transformers_loads_it(artifact, expected):
    model = SentenceTransformer(str(artifact.model_directory('model')), device='cpu')
    assert model.max_seq_length == 256
    np.testing.assert_allclose(model.encode(TEXTS, show_progress_bar=False), expected, rtol=0, atol=1e-5)


def test_plain_onnxruntime_and_tokenizers_load_it(artifact, expected):
    directory = artifact.model_directory('model')
    session = onnxruntime.InferenceSession(directory / 'model.onnx')
    assert [node.name for node in session.get_inputs()] == ['input_ids', 'attention_mask', 'token_type_ids']
    assert [node.name for node in session.get_outputs()] == ['sentence_embedding']
    # tokenizer.json pads and cuts by itself
    encodings = Tokenizer.from_file(str(directory / 'tokenizer.json')).encode_batch(TEXTS)
    inputs = {
        'input_ids': np.array([encoding.ids for encoding in encodings]),
        'attention_mask': np.array([encoding.attention_mask for encoding in encodings]),
        'token_type_ids': np.array([encoding.type_ids for encoding in encodings]),
    }
    assert inputs['input_ids'].shape[1] == 256
    (embeddings,) = session.run(None, inputs)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(('batch', 'length'), [(1, 1), (1, 256), (2, 2), (3, 17), (33, 5), (64, 1), (2, 256)])
def test_any_batch_and_any_length(artifact, encoder, batch, length):
    session = onnxruntime.InferenceSession(artifact.model_directory('model') / 'model.onnx')
    inputs = random_inputs(batch, length)
    (embeddings,) = session.run(None, inputs)
    with torch.no_grad():
        wanted = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    np.testing.assert_allclose(embeddings, wanted, rtol=0, atol=1e-4)


def test_padding_changes_nothing(artifact):
    session = onnxruntime.InferenceSession(artifact.model_directory('model') / 'model.onnx')
    inputs = random_inputs(4, 9)
    (short,) = session.run(None, inputs)
    for padding in (1, 7, 247):
        (padded,) = session.run(None, {name: np.pad(array, ((0, 0), (0, padding))) for name, array in inputs.items()})
        np.testing.assert_allclose(padded, short, rtol=0, atol=1e-5)


def test_both_engines_load_it(artifact, expected):
    for is_onnx, tolerance in ((True, 1e-4), (False, 1e-5)):
        embeddings = load_engine(artifact, is_onnx=is_onnx).encode_texts(TEXTS, batch_size=4)
        np.testing.assert_allclose(embeddings, expected, rtol=0, atol=tolerance)


def test_files_tell_nothing_about_the_machine(artifact):
    for path in artifact.directory.rglob('*'):
        if path.is_file():
            content = path.read_bytes()
            for trace in (b'site-packages', b'stack_trace', b'/work/', b'/home/', b'/root/', b'/tmp/'):
                assert trace not in content, f'{path} has {trace!r}'


@pytest.mark.parametrize('pooling', ['cls', 'max', 'lasttoken'])
def test_other_poolings_are_in_the_onnx_model_too(tiny_model, tmp_path, pooling):
    encoder = TextEncoder.load(tiny_model, pooling=pooling)
    encoder.normalize = False
    export(encoder, tmp_path / 'model')
    expected = SentenceTransformer(str(tmp_path / 'model'), device='cpu').encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(load_engine(tmp_path / 'model').encode_texts(TEXTS), expected, rtol=0, atol=1e-4)


def test_equal_weights_give_equal_files(tiny_model, tiny_artifact, tmp_path):
    again = build_artifact(
        {'model': TextEncoder.load(tiny_model)},
        name='tiny-run',
        config={'epochs': 2, 'model': 'tiny'},
        metrics={'after': {'average_precision': 0.75}, 'before': {'average_precision': 0.5}},
        target=tmp_path / 'again.zip',
    )
    assert again.read_bytes() == tiny_artifact.read_bytes()


def test_the_encoder_stays_as_it_was_and_nothing_is_printed(tiny_model, tmp_path, capfd, recwarn):
    encoder = TextEncoder.load(tiny_model).train()
    export(encoder, tmp_path / 'model')
    assert encoder.training
    assert all(module.training for module in encoder.modules())
    assert capfd.readouterr() == ('', '')
    assert not recwarn.list


def tiny_mlp():
    encoder = MLPEncoder(6, [5, 4], activation='tanh', l2=True)
    encoder.add_head(3)
    return encoder


ENCODERS = {
    'clip': lambda clip: load_encoders(clip),
    'open_clip': lambda clip: load_encoders(clip),
    'timm': lambda _: load_encoders('timm/test_vit', options={'pretrained': False, 'pooling': 'cls'}),
    'torchvision': lambda _: load_encoders(
        'squeezenet1_1', options={'pretrained': False, 'pooling': 'gem', 'preprocess_options': {'size': 64}}
    ),
    'mesh': lambda _: {'model': PointEncoder(64, width=0.125)},
    'tensor': lambda _: {'model': tiny_mlp()},
}
TASKS = {'mesh': 'mesh-to-mesh', 'tensor': 'any', 'timm': 'image-to-image', 'torchvision': 'image-to-image'}


@pytest.mark.parametrize('kind', ENCODERS)
def test_every_kind_of_encoder_gives_an_artifact(kind, request, tmp_path):
    torch.manual_seed(0)
    fixture = {'clip': 'tiny_clip', 'open_clip': 'tiny_open_clip'}.get(kind)
    encoders = ENCODERS[kind](fixture and request.getfixturevalue(fixture))
    path = build_artifact(encoders, name='run', config={}, metrics={}, target=tmp_path / 'run.zip')
    artifact = open_artifact(path, cache=tmp_path / 'cache')
    assert set(artifact.models) == set(encoders)
    for name, encoder in encoders.items():
        info = artifact.models[name]
        assert (info.dim, info.task) == (encoder.dim, TASKS.get(kind, 'text-to-image'))
        assert info.preprocess_types == (encoder.modality,)
        assert (info.max_length is None) == (encoder.modality != 'text')
        assert info.export['precision'] == 'fp32'
        assert info.export['to_torch']['difference'] <= 1e-4
        assert info.export['to_torch']['cosine'] == pytest.approx(1, abs=1e-5)
        directory = artifact.model_directory(name)
        again = load_encoder(directory)
        session = onnxruntime.InferenceSession(directory / 'model.onnx')
        assert [node.name for node in session.get_inputs()] == encoder.input_names
        for batch in (1, 2, 7):
            inputs = encoder.preprocessor.collate(random_features(encoder, batch))
            tensors = {name: torch.from_numpy(inputs[name]) for name in encoder.input_names}
            with torch.no_grad():
                expected, loaded = encoder(**tensors), again(**tensors)
            (found,) = session.run(['sentence_embedding'], {name: inputs[name] for name in encoder.input_names})
            assert (found.shape, found.dtype) == ((batch, encoder.dim), np.float32)
            scale = expected.norm(dim=1).max()
            np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-4)
            np.testing.assert_allclose(loaded / scale, expected / scale, rtol=0, atol=1e-5)


def test_the_tolerance_is_relative_to_the_length_of_an_embedding():
    def run(inputs):
        return inputs['x']

    small, large = np.full((2, 4), 1.0), np.full((2, 4), 1000.0)
    for values in (small, large):
        parity = compare(run, lambda inputs, values=values: values * 1.001, [{'x': values}])
        assert parity.difference == pytest.approx(0.0005)
        assert parity.cosine == parity.mean_cosine == pytest.approx(1)
    assert compare(run, lambda _: -small, [{'x': small}]).cosine == pytest.approx(-1)
    broken = compare(run, lambda _: np.full((2, 4), np.nan), [{'x': small}])
    assert not broken.difference <= 1
    assert broken.mean_cosine == -1


def failing(encoder, path):
    path.write_bytes(b'half of it')
    path.with_name('model.onnx.data').write_bytes(b'weights')
    raise NotImplementedError(f'no such operator\nin {path}')


def too_strict(monkeypatch):
    monkeypatch.setattr(training.export, 'TOLERANCE', -1.0)


def not_exportable(monkeypatch):
    monkeypatch.setattr(training.export, '_export_onnx', failing)


def too_large(monkeypatch):
    monkeypatch.setattr(training.export, '_ONNX_LIMIT', 1000)


WITHOUT_ONNX = {
    too_strict: 'the exported ONNX model is wrong: an embedding differs by ',
    not_exportable: 'no such operator in model.onnx',
    too_large: ' GB of weights, and one ONNX file holds less than 2 GB',
}


@pytest.mark.parametrize('break_it', WITHOUT_ONNX)
@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_a_run_is_not_lost_when_there_is_no_onnx_model(tiny_model, tmp_path, monkeypatch, caplog, break_it, precision):
    encoder, reason = TextEncoder.load(tiny_model), WITHOUT_ONNX[break_it]
    break_it(monkeypatch)
    path = build_artifact(
        {'model': encoder},
        name='run',
        config={},
        metrics={},
        target=tmp_path / 'run.zip',
        onnx_precision=precision,
        measure=lambda _: pytest.fail('there is nothing to measure'),
    )
    assert reason in caplog.text
    artifact = open_artifact(path, cache=tmp_path / 'cache')
    report = artifact.metadata['models']['model']['export']
    assert report == artifact.models['model'].export
    assert set(report) == {'onnx', 'reason'} and report['onnx'] is None
    assert reason in report['reason'] and str(tmp_path) not in report['reason']
    directory = artifact.model_directory('model')
    assert not list(directory.glob('model.onnx*'))
    with torch.no_grad():
        expected = [encoder(**encoder.tokenizer([text], truncation=True, return_tensors='pt')) for text in TEXTS]
    for is_onnx in (None, False):
        found = load_engine(path, is_onnx=is_onnx).encode_texts(TEXTS)
        np.testing.assert_allclose(found, torch.cat(expected), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='load it with is_onnx=False'):
        load_engine(path, is_onnx=True)
    with pytest.raises(RuntimeError, match='there is no ONNX model: '):
        export(encoder, tmp_path / 'alone')


def test_one_of_two_may_have_an_onnx_model(tiny_clip, tmp_path, monkeypatch):
    """The other is measured with torch."""
    make = training.export._export_onnx
    monkeypatch.setattr(
        training.export,
        '_export_onnx',
        lambda encoder, path: (make if encoder.modality == 'text' else failing)(encoder, path),
    )
    measured = []

    def measure(runs):
        for name, run in runs.items():
            encoder = encoders[name]
            measured.append(run(encoder.preprocessor.collate(random_features(encoder, 2))).shape)
        return {'recall_at_k': 0.5}

    encoders = load_encoders(tiny_clip)
    path = build_artifact(
        encoders,
        name='run',
        config={},
        metrics={},
        target=tmp_path / 'run.zip',
        onnx_precision='int8',
        onnx_min_cosine=-1,
        measure=measure,
    )
    artifact = open_artifact(path, cache=tmp_path / 'cache')
    assert measured == [(2, encoder.dim) for encoder in encoders.values()]
    assert artifact.models['clip-text'].export['precision'] == 'int8'
    assert artifact.models['clip-vision'].export['onnx'] is None
    for name in encoders:
        assert (artifact.model_directory(name) / 'model.onnx').is_file() == (name == 'clip-text')
    assert load_engine(path, select_model='clip-vision').dim == encoders['clip-vision'].dim


def test_saved_weights_that_are_wrong_are_an_error(tiny_model, tmp_path, monkeypatch):
    def save(encoders, directory):
        save_encoders(encoders, directory)
        other = TextEncoder.load(tiny_model)
        with torch.no_grad():
            for weight in other.parameters():
                weight += 0.1 * torch.randn_like(weight)
        other.save(directory / 'model')

    for broken, message in ((save, 'is wrong: an embedding differs by'), (lambda *_: None, 'cannot be loaded')):
        monkeypatch.setattr(training.export, 'save_encoders', broken)
        with pytest.raises(RuntimeError, match=f"the saved model 'model' {message}"):
            build_artifact(
                {'model': TextEncoder.load(tiny_model)}, name='run', config={}, metrics={}, target=tmp_path / 'run.zip'
            )
    assert not list(tmp_path.glob('run.zip*'))


def test_weights_that_are_no_numbers_are_an_error(tmp_path):
    encoder = tiny_mlp()
    with torch.no_grad():
        next(encoder.parameters()).fill_(float('nan'))
    with pytest.raises(RuntimeError, match='is wrong'):
        build_artifact({'model': encoder}, name='run', config={}, metrics={}, target=tmp_path / 'run.zip')


def test_models_of_more_than_2_gb_are_told_of(tiny_model, caplog):
    encoder = TextEncoder.load(tiny_model)
    assert check_size(encoder) is None
    # 2.4 GB that take no memory
    encoder.backbone.register_buffer('table', torch.zeros(1).expand(600_000_000), persistent=True)
    assert 'the model has 2.4 GB of weights' in check_size(encoder)
    assert 'will have no ONNX model' in caplog.text
