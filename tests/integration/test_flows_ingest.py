"""Data of every shape and kind on its way into a Flow."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from finetuner.documents import SCORE, Content, Document

PAIRS = [('a red apple', 'apple'), ('a green pear', 'pear')]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (200, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def facts(answer: dict) -> tuple:
    return answer['rows'], answer['shape'], tuple(answer['modalities']), answer['labelled'], answer['scored']


def test_pairs_come_the_same_over_grpc_and_http(service):
    documents = [
        Document(chunks=[Content(text=text) for text in pair], tags={SCORE: number / 2})
        for number, pair in enumerate(PAIRS)
    ]
    (answer,) = service.call('/ingest', documents, name='pairs-grpc')
    assert facts(answer.tags) == (2, 'pairs', ('text', 'text'), False, True)
    data = [
        {'chunks': [{'text': text} for text in pair], 'tags': {'finetuner_score': number / 2}}
        for number, pair in enumerate(PAIRS)
    ]
    assert service.tags('/ingest', data, name='pairs-http')['digest'] == answer.tags['digest']


def test_triplets_tensors_and_images_come_the_same_over_grpc_and_http(service):
    blob = picture()
    sent = {
        'triplets': (
            [Document(chunks=[Content(text=text) for text in 'abc'], tags={SCORE: 0.5})],
            [{'chunks': [{'text': text} for text in 'abc'], 'tags': {'finetuner_score': 0.5}}],
            (1, 'triplets', ('text', 'text', 'text'), False, True),
        ),
        'tensors': (
            [Document(tensor=np.array([1, 2.5], np.float32), tags={'finetuner_label': 'x'})],
            [{'tensor': [1, 2.5], 'tags': {'finetuner_label': 'x'}}],
            (1, 'items', ('tensor',), True, False),
        ),
        'images': (
            [Document(chunks=[Content(text='red'), Content(blob=blob)])],
            [{'chunks': [{'text': 'red'}, {'blob': base64.b64encode(blob).decode()}]}],
            (1, 'pairs', ('text', 'image'), False, False),
        ),
    }
    for name, (documents, data, expected) in sent.items():
        (answer,) = service.call('/ingest', documents, name=f'{name}-grpc')
        assert facts(answer.tags) == expected
        assert service.tags('/ingest', data, name=f'{name}-http')['digest'] == answer.tags['digest']


def test_a_mixture_of_shapes_is_refused_by_its_document(service):
    data = [{'text': 'x'}, {'id': 'odd', 'chunks': [{'text': 'x'}, {'text': 'y'}]}]
    response = service.post('/ingest', data, name='mixture')
    assert response.status_code == 400
    assert "documents[1] (id 'odd') is a pair, and the first document an item" in response.json()['detail']


def test_a_file_brings_the_images_beside_it(service):
    folder = service.folder / 'data'
    (folder / 'red.png').write_bytes(picture())
    (folder / 'pictures.jsonl').write_text('{"image": "red.png", "label": "a"}\n')
    answer = service.tags('/ingest', name='pictures-file', uri=str(folder / 'pictures.jsonl'))
    assert facts(answer) == (1, 'items', ('image',), True, False)


@pytest.mark.parametrize('uri', ['/etc/hostname.png', '../secret.png', 'http://127.0.0.1:9/a.png'])
def test_a_file_brings_nothing_from_elsewhere(service, uri):
    (service.folder / 'secret.png').write_bytes(picture())
    path = service.folder / 'data' / 'thief.csv'
    path.write_text(f'{uri},a\n{uri},a\n')
    response = service.post('/ingest', name='thief', uri=str(path))
    assert response.status_code == 400
    assert 'thief.csv, line 1, column 1: ' in response.json()['detail']
    assert 'may read' in response.json()['detail'] or 'not read here' in response.json()['detail']


def test_a_loss_and_data_that_do_not_fit_are_told_at_the_door(service, tiny_model):
    documents = [Document(chunks=[Content(text='a'), Content(text='b')], tags={SCORE: 0.5})]
    service.call('/ingest', documents, name='scored')
    values = {'model': str(tiny_model), 'train_data': 'scored', 'run_name': 'unfit'}
    response = service.post('/fit', **values)
    assert response.status_code == 400
    assert (
        "TripletMarginLoss learns from labelled items, or pairs, and the data set 'scored' holds scored pairs of texts"
        in (response.json()['detail'])
    )
