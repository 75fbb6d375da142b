"""Both engines with images, meshes and tensors, and models of two encoders; texts are in test_inference_engines.py."""

from __future__ import annotations

import base64
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from finetuner.data.links import Links
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError, SelectModelRequired
from finetuner.inference import build_model, encode, get_model, load_engine
from finetuner.inference.digest import digest_model
from finetuner.inference.image_encoder import ImageEncoder
from finetuner.inference.mlp_encoder import MLPEncoder
from finetuner.inference.onnx_engine import ONNXRuntimeInferenceEngine
from finetuner.inference.torch_engine import TorchInferenceEngine


def build(encoder, target):
    from training.export import build_artifact

    return build_artifact({'model': encoder}, name='run', config={}, metrics={}, target=target)


@pytest.fixture(scope='module')
def image_artifact(tmp_path_factory):
    torch.manual_seed(0)
    encoder = ImageEncoder.load('squeezenet1_1', pretrained=False, preprocess_options={'size': 48})
    return build(encoder, tmp_path_factory.mktemp('image') / 'image-run.zip')


@pytest.fixture(scope='module')
def mlp_artifact(tmp_path_factory):
    torch.manual_seed(0)
    return build(MLPEncoder(6, [5, 4], activation='relu'), tmp_path_factory.mktemp('mlp') / 'mlp-run.zip')


@pytest.fixture(scope='module', params=[True, False], ids=['onnx', 'torch'])
def engine(request, image_artifact):
    return load_engine(image_artifact, is_onnx=request.param)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """The paths of ten pictures of different sizes."""
    folder = tmp_path_factory.mktemp('pictures')
    chance = np.random.default_rng(0)
    for number in range(10):
        pixels = chance.integers(0, 256, (40 + 7 * number, 90 - 5 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    return sorted(folder.iterdir())


def run_python(program, **environment):
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_engines_embed_images_as_the_encoder(engine, image_artifact, pictures):
    reference = load_engine(image_artifact, is_onnx=False).encoder
    pixels = reference.preprocessor.collate(reference.preprocessor.features(pictures))['pixels']
    with torch.no_grad():
        expected = reference(pixels=torch.from_numpy(pixels)).numpy()
    assert (engine.modality, engine.dim, engine.max_length) == ('image', 512, None)
    np.testing.assert_allclose(engine.encode_contents(pictures), expected, rtol=1e-3, atol=1e-4)
    for size in (1, 3, 10, 100):
        found = engine.encode_contents(pictures, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert engine.encode_contents([]).shape == (0, 512)


def test_every_form_of_an_image(engine, pictures):
    path = pictures[3]
    uri = f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'
    contents = [path, str(path), path.as_uri(), uri, path.read_bytes(), np.asarray(Image.open(path))]
    first, *others = engine.encode_contents(contents)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
    documents = DocumentArray(
        [
            Document(uri=str(path)),
            Document(uri=uri),
            Document(blob=path.read_bytes()),
            Document(tensor=np.asarray(Image.open(path))),
            Document(blob=path.read_bytes(), uri='/no/such/file.png'),
        ]
    )
    assert encode(engine, documents) is documents
    np.testing.assert_allclose(documents.embeddings, np.stack([first] * 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('bad', 'match'),
    [
        ({'text': 'a text'}, 'has no image to encode: set blob, tensor or uri'),
        ({'uri': 'no-such-file.png'}, 'cannot be read: there is no file no-such-file.png'),
        ({'blob': b'not an image'}, 'is not an image'),
        ({'tensor': np.zeros((4, 4))}, 'is an array of float64'),
    ],
)
def test_a_document_that_cannot_be_read_is_named(engine, pictures, bad, match):
    documents = DocumentArray([*(Document(uri=str(path)) for path in pictures), Document(id='this-one', **bad)])
    with pytest.raises(DataError, match=rf"document 10 \(id 'this-one'\) .*{match}"):
        engine.encode(documents, batch_size=4)
    assert documents[0].embedding is None


def test_an_item_that_cannot_be_read_is_named(engine, pictures):
    with pytest.raises(DataError, match=r'item 7 .*is not an image'):
        engine.encode_contents([*pictures[:7], b'no image'], batch_size=3)
    with pytest.raises(DataError, match='this model does not take texts: its modality is image'):
        engine.encode_texts(['a text'])
    with pytest.raises(DataError, match='there is no file a text'):
        encode(engine, ['a text'])


def test_links_decide_what_may_be_read(engine, pictures):
    def refuse(path):
        raise DataError('not this one')

    documents = DocumentArray([Document(id='x', uri=str(pictures[0]))])
    with pytest.raises(DataError, match=r"document 0 \(id 'x'\) cannot be read: not this one"):
        engine.encode(documents, links=Links(check=refuse))
    engine.encode(DocumentArray([Document(blob=pictures[0].read_bytes())]), links=Links(check=refuse))


def test_reading_goes_on_while_the_model_works(engine, pictures, monkeypatch):
    order = []
    features, run = engine.preprocessor.features, engine.run
    monkeypatch.setattr(engine.preprocessor, 'features', lambda rows: order.append('read') or features(rows))
    monkeypatch.setattr(engine, 'run', lambda inputs: order.append('run') or run(inputs))
    done = []
    engine.encode_contents(pictures, batch_size=4, progress=done.append)
    assert sorted(order) == ['read'] * 3 + ['run'] * 3
    assert order[0] == 'read'
    assert order[-1] == 'run'
    assert done == [4, 4, 2]


def test_a_list_of_paths_for_finetuner_encode(image_artifact, pictures):
    model = get_model(image_artifact)
    assert isinstance(model, ONNXRuntimeInferenceEngine)
    assert encode(model, [str(path) for path in pictures], batch_size=2).shape == (10, 512)


def test_onnx_needs_neither_torch_nor_the_libraries_of_models(image_artifact, pictures, tmp_path):
    program = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'transformers', 'open_clip', 'docarray', 'jina'):
            raise ModuleNotFoundError(f'{{name}} is blocked', name=name)
sys.meta_path.insert(0, Blocker())
from finetuner.inference import encode, get_model
print(encode(get_model({str(image_artifact)!r}), [{str(pictures[0])!r}]).shape)
"""
    assert run_python(program, FINETUNER_HOME=str(tmp_path)) == '(1, 512)'


@pytest.mark.parametrize('is_onnx', [True, False])
def test_tensors(mlp_artifact, is_onnx):
    engine = load_engine(mlp_artifact, is_onnx=is_onnx)
    vectors = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    encoder = load_engine(mlp_artifact, is_onnx=False).encoder
    with torch.no_grad():
        expected = encoder(tensor=torch.from_numpy(vectors)).numpy()
    documents = DocumentArray([Document(tensor=vector) for vector in vectors])
    np.testing.assert_allclose(encode(engine, documents, 4).embeddings, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encode(engine, vectors), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='MLP model does not support values from a list'):
        encode(engine, ['a', 'b'])
    with pytest.raises(DataError, match=r"document 1 \(id 'x'\) has no tensor to encode"):
        engine.encode(DocumentArray([Document(tensor=vectors[0]), Document(id='x', text='a')]))
    with pytest.raises(DataError, match=r"document 1 \(id 'x'\) has the shape 2"):
        engine.encode(DocumentArray([Document(tensor=vectors[0]), Document(id='x', tensor=np.zeros(2))]))


def test_meshes(tmp_path):
    import trimesh

    engine = build_model('pointnet-base', model_options={'point_cloud_size': 64, 'width': 0.1}, device='cpu')
    assert engine.modality == 'mesh'
    trimesh.creation.box().export(tmp_path / 'box.stl')
    content = (tmp_path / 'box.stl').read_bytes()
    points = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    documents = DocumentArray(
        [Document(uri=str(tmp_path / 'box.stl')), Document(blob=content), Document(tensor=points)]
    )
    first, second, third = engine.encode(documents).embeddings
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert abs(first - third).max() > 1e-4
    with pytest.raises(DataError, match='document 0 .* has no mesh to encode'):
        engine.encode(DocumentArray([Document(text='a')]))


def test_both_sides_of_clip(tiny_clip, pictures):
    with pytest.raises(SelectModelRequired, match='clip-text, clip-vision'):
        build_model(str(tiny_clip), device='cpu')
    with pytest.raises(ValueError, match="no encoder 'clip-sound': it has clip-text, clip-vision"):
        build_model(str(tiny_clip), select_model='clip-sound', device='cpu')
    texts = build_model(str(tiny_clip), select_model='clip-text', device='cpu')
    images = load_engine(str(tiny_clip), select_model='clip-vision')
    assert isinstance(images, TorchInferenceEngine)
    assert encode(texts, ['red', 'a red cap']).shape == (2, texts.dim)
    assert encode(images, [str(path) for path in pictures]).shape == (10, texts.dim)
    assert digest_model(texts, str(tiny_clip), 'clip-text') != digest_model(images, str(tiny_clip), 'clip-vision')


def test_pretrained_models_with_options(pictures):
    options = {'pretrained': False, 'pooler': 'GeM', 'pooler_options': {'p': 2}, 'preprocess_options': {'size': 48}}
    model = build_model('timm/test_resnet', model_options=options, device='cpu', select_model='ignored')
    assert (model.encoder.pooling, model.encoder.pooling_options['p']) == ('gem', 2)
    assert encode(model, pictures).shape == (10, 96)
    with pytest.raises(ValueError, match='max_length is 9: it is for models that take texts'):
        build_model('timm/test_resnet', model_options={'pretrained': False, 'max_length': 9})
