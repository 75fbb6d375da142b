"""Data of every shape and kind on its way from `finetuner.fit` to the service."""

from __future__ import annotations

import json

import numpy as np
import pytest

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.client import upload
from finetuner.data import CSVOptions
from finetuner.documents import LABEL, SCORE, Content, Document
from finetuner.excepts import DataError, QuotaError, RegistryError

PNG = b'\x89PNG\r\n\x1a\n'


@pytest.fixture
def stored(service, run_record):
    """What the service was sent: the documents of every data set, part by part."""
    parts: dict[str, list[list[Document]]] = {}

    def ingest(parameters, documents):
        sent = parts.setdefault(parameters['name'].removeprefix('finetuner-dastorage-default-r-'), [])
        sent.append(list(documents))
        return {'name': parameters['name'], 'rows': sum(map(len, sent))}

    service.endpoints.update({'/ingest': ingest, '/fit': run_record('CREATED')})
    return parts


def fit(data, model='m', **arguments):
    return finetuner.fit(model, data, run_name='r', **arguments)


def texts(documents):
    return [[chunk.text for chunk in document.chunks] for document in documents]


def test_scored_pairs_of_a_csv_file(stored, tmp_path):
    (tmp_path / 'pairs.csv').write_text('a,b,0.5\nc,d,1\n')
    fit(str(tmp_path / 'pairs.csv'))
    [documents] = stored['train']
    assert texts(documents) == [['a', 'b'], ['c', 'd']]
    assert [document.tags for document in documents] == [{SCORE: 0.5}, {SCORE: 1.0}]


@pytest.mark.parametrize('suffix', ['jsonl', 'ndjson', 'parquet', 'arrow'])
def test_other_files_are_known_by_their_endings(stored, tmp_path, suffix):
    path = tmp_path / f'triplets.{suffix}'
    row = {'query': 'a', 'positive': 'b', 'negative': 'c', 'margin': 0.5}
    if suffix in ('jsonl', 'ndjson'):
        path.write_text(json.dumps(row))
    else:
        pa = pytest.importorskip('pyarrow')
        table = pa.Table.from_pylist([row])
        if suffix == 'arrow':
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        else:
            from pyarrow import parquet

            parquet.write_table(table, path)
    fit(path)
    assert texts(stored['train'][0]) == [['a', 'b', 'c']]
    assert stored['train'][0][0].tags == {SCORE: 0.5}
    with pytest.raises(DataError, match=f'nowhere.{suffix} does not exist'):
        fit(f'nowhere.{suffix}')


def test_a_data_set_of_hugging_face(stored):
    datasets = pytest.importorskip('datasets')
    fit(datasets.Dataset.from_dict({'text': ['a', 'b'], 'label': ['x', 'y']}))
    assert [(document.text, document.tags[LABEL]) for document in stored['train'][0]] == [('a', 'x'), ('b', 'y')]


def test_the_task_of_the_model_reaches_the_reader(stored, tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    (tmp_path / 'table.csv').write_text('a.png,x\na.png,x\n')
    fit(tmp_path / 'table.csv', 'resnet50')
    assert [document.blob for document in stored.pop('train')[0]] == [PNG, PNG]
    fit(tmp_path / 'table.csv', 'all-minilm-l6-v2')
    assert [document.text for document in stored['train'][0]] == ['a.png', 'a.png']


def test_parts_of_images_are_bounded_in_bytes(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, 'PART_BYTES', 100_000)
    for number in range(6):
        (tmp_path / f'{number}.png').write_bytes(PNG + bytes(40_000))
    (tmp_path / 'table.csv').write_text(''.join(f'{number}.png,x\n' for number in range(6)))
    fit(tmp_path / 'table.csv')
    assert [len(part) for part in stored['train']] == [2, 2, 2]


def test_chunks_of_two_kinds(stored):
    documents = [Document(chunks=[Content(text='a'), Content(blob=PNG)], tags={LABEL: 'x'})]
    fit(documents)
    [[sent]] = stored['train']
    assert (sent.chunks[0].text, sent.chunks[1].blob, sent.tags) == ('a', PNG, {LABEL: 'x'})


def test_tensors_keep_their_numbers(stored):
    fit([Document(tensor=np.arange(3, dtype=np.float32), tags={LABEL: 'x'})])
    [[sent]] = stored['train']
    assert sent.tensor.dtype == np.float32 and sent.tensor.tolist() == [0, 1, 2]


def test_local_files_of_documents_are_sent_themselves(stored, tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    fit([Document(uri=str(tmp_path / 'a.png'), tags={LABEL: 'x'})])
    assert stored['train'][0][0].blob == PNG


def test_data_of_callbacks_may_be_of_every_kind(stored, service, tmp_path):
    (tmp_path / 'train.csv').write_text('a,b,0.5\nc,d,1\n')
    (tmp_path / 'queries.jsonl').write_text('{"text": "a", "label": "x"}\n')
    index = [Document(text='b', tags={LABEL: 'x'})]
    callback = EvaluationCallback(tmp_path / 'queries.jsonl', index)
    fit(tmp_path / 'train.csv', callbacks=[callback], csv_options=CSVOptions(seed=1))
    assert [document.text for document in stored['query'][0] + stored['index'][0]] == ['a', 'b']
    assert len(stored['train'][0]) == 2
    (sent,) = service.parameters('/fit')
    assert sent['callbacks'][0]['options']['query_data'].endswith('-query')


def test_a_malformed_row_is_named_before_its_part_is_sent(stored, tmp_path):
    (tmp_path / 'pairs.csv').write_text('a,b,0.5\nc,d,1\ne,f,high\n')
    with pytest.raises(DataError, match="pairs.csv, line 3, column 3: 'high' is no score"):
        fit(tmp_path / 'pairs.csv', csv_options=CSVOptions(columns={'content': [1, 2], 'score': 3}))
    assert stored == {}


@pytest.mark.parametrize('refusal', [DataError('the loss learns from pairs'), RegistryError('the name is taken')])
def test_what_was_sent_for_a_run_that_is_refused_is_deleted(stored, service, tmp_path, refusal):
    def refuse(parameters, documents):
        if 'check_only' in parameters:
            return {'checked': True}
        raise refusal

    def find(parameters, documents):
        if parameters['name'].endswith('-eval'):  # an earlier run of this name has sent it
            return {'name': parameters['name'], 'rows': 1}
        return missing(parameters, documents)

    missing = service.endpoints['/dataset']
    service.endpoints.update({'/fit': refuse, '/dataset': find, '/delete_dataset': lambda *_: {}})
    for name in ('train', 'eval'):
        (tmp_path / f'{name}.csv').write_text('a,x\nb,y\n')
    with pytest.raises(type(refusal), match=str(refusal)):
        fit(str(tmp_path / 'train.csv'), eval_data=str(tmp_path / 'eval.csv'))
    deleted = [parameters['name'] for parameters in service.parameters('/delete_dataset')]
    assert deleted == ['finetuner-dastorage-default-r-train']


def test_a_quota_is_told_as_it_is(stored, service, tmp_path):
    def refuse(parameters, documents):
        raise QuotaError('The quota of the account is 10 bytes')

    service.endpoints['/ingest'] = refuse
    (tmp_path / 'train.csv').write_text('a,x\nb,y\n')
    service.endpoints['/delete_dataset'] = service.endpoints['/dataset']
    with pytest.raises(QuotaError, match='^The quota of the account is 10 bytes$'):
        fit(str(tmp_path / 'train.csv'))


def test_texts_for_a_model_of_images_are_told(stored, tmp_path):
    (tmp_path / 'train.csv').write_text('my invoice is wrong,billing\nhello there,other\n')
    with pytest.raises(DataError, match='there is no file my invoice.*The model reads images: each cell'):
        fit(str(tmp_path / 'train.csv'), model='resnet50')
