"""The way of a model through a Flow: data in, trained, looked at, fetched, served."""

import asyncio
import hashlib
import io
import zipfile

import numpy as np
import pytest
import requests

from executors.encoder import FinetunerExecutor
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, ParameterError, RegistryError, RunFailedError


def test_ingest_appends_and_answers_with_the_data_set(service):
    first = service.tags('/ingest', [{'text': 'one', 'tags': {'finetuner_label': 'x'}}], name='growing')
    assert first['name'] == 'growing'
    assert (first['rows'], first['labelled']) == (1, True)
    documents = [Document(text=f'text {i}', tags={'finetuner_label': i}) for i in range(2500)]
    (answer,) = service.call('/ingest', documents, name='growing')
    assert answer.tags['rows'] == 2501
    assert answer.tags['size'] > first['size']
    assert len(answer.tags['digest']) == 64
    assert answer.tags['digest'] != first['digest']


def test_a_part_that_is_sent_again_is_stored_once(service):
    documents = [Document(id='a', text='one'), Document(id='b', text='two')]
    first = service.call('/ingest', documents, name='parts', part=3)[0].tags
    assert service.call('/ingest', documents, name='parts', part=3)[0].tags == first
    corrected = service.call('/ingest', documents[:1], name='parts', part=3)[0].tags
    assert corrected['rows'] == 1, 'a part with other documents replaces the one that is there'


def test_a_malformed_document_is_named_and_nothing_of_its_request_is_stored(service):
    good, bad = {'text': 'fine'}, {'id': 'the-bad-one'}
    response = service.post('/ingest', [good, good, bad], name='half')
    assert response.status_code == 400
    assert '2' in response.json()['detail']
    assert 'the-bad-one' in response.json()['detail']
    assert service.tags('/ingest', [good], name='half')['rows'] == 1


def test_ingest_reads_a_csv_file_below_an_allowed_folder(service):
    path = service.folder / 'data' / 'fruits.csv'
    path.write_text('text,category\na red apple,apple\na green pear,pear\n')
    answer = service.tags('/ingest', name='from-csv', uri=f'file://{path}')
    assert (answer['rows'], answer['labelled']) == (2, True)
    answer = service.tags('/ingest', name='from-csv', uri=str(path), csv_options={'size': 1})
    assert answer['rows'] == 3


@pytest.mark.parametrize('uri', ['/etc/passwd', 'file:///etc/hostname', 's3://bucket/x.csv', 'http://localhost/x.csv'])
def test_ingest_reads_nothing_else(service, uri):
    response = service.post('/ingest', name='stolen', uri=uri)
    assert response.status_code == 400
    assert 'this service' in response.json()['detail']


def test_ingest_needs_documents_or_a_uri(service):
    assert service.post('/ingest', name='nothing').status_code == 400
    assert service.post('/ingest', [{'text': 'x'}], name='both', uri='/x.csv').status_code == 400
    response = service.post('/ingest', name='x', uri='/x.csv', csv_options={'dialekt': 'excel'})
    assert response.status_code == 422
    assert 'dialekt' in response.json()['detail']


def test_a_run_goes_from_created_to_finished(finished_run):
    assert finished_run['name'] == 'finished'
    assert finished_run['experiment_name'] == 'default'
    assert len(finished_run['artifact_id']) == 24
    assert finished_run['config']['epochs'] == 1
    assert finished_run['config']['loss'] == 'TripletMarginLoss'
    assert finished_run['created_at'].startswith('20')


def test_the_same_fit_again_is_the_same_run(service, tiny_model, finished_run):
    again = service.fit(tiny_model, 'finished', eval_data='fruits')
    assert again == service.tags('/status', run_name='finished')
    assert again['artifact_id'] == finished_run['artifact_id']
    with pytest.raises(RegistryError, match='other values of epochs'):
        arguments = {'train_data': 'fruits', 'eval_data': 'fruits', 'batch_size': 8, 'device': 'cpu'}
        service.call('/fit', model=str(tiny_model), run_name='finished', epochs=2, **arguments)


def test_fit_checks_everything_at_the_door(service, tiny_model):
    service.tags('/ingest', [{'text': 'no label'}], name='bare')
    service.tags('/ingest', [{'uri': 'file:///a.png', 'tags': {'finetuner_label': 'a'}}], name='pictures')

    def refused(**arguments) -> str:
        values = {'model': str(tiny_model), 'train_data': 'fruits', 'run_name': 'refused', **arguments}
        response = service.post('/fit', **{name: value for name, value in values.items() if value is not None})
        assert response.status_code in (400, 422)
        return response.json()['detail']

    assert "no data set 'nothing'" in refused(train_data='nothing')
    assert "no data set 'nothing'" in refused(eval_data='nothing')
    assert "labelled items, or pairs, and the data set 'bare' holds unlabelled texts" in refused(train_data='bare')
    assert "'pictures' names files or URLs" in refused(eval_data='pictures')
    callback = {'name': 'EvaluationCallback', 'options': {'query_data': 'bare'}}
    assert "and the data set 'bare' holds unlabelled texts" in refused(callbacks=[callback])
    assert 'model is missing' in refused(model=None)
    assert "'TripletLoss'" in refused(loss='TripletLoss')
    message = refused(epochs='many', batchsize=3)
    assert 'epochs' in message
    assert 'many' in message
    assert 'batchsize' in message
    assert service.post('/status', run_name='refused').status_code == 400, 'a refused run was stored'


def test_numbers_from_the_wire_are_whole_again(service, finished_run):
    """Parameters travel as floats."""
    assert isinstance(finished_run['config']['batch_size'], int)
    assert finished_run['config']['batch_size'] == 8


def test_the_log_is_read_in_whole_or_from_an_offset(service, finished_run):
    (whole,) = service.call('/logs', run_name='finished')
    assert 'Training' in whole.text
    assert whole.tags == {'offset': len(whole.text.encode()), 'status': 'FINISHED'}
    (rest,) = service.call('/logs', run_name='finished', offset=10)
    assert rest.text == whole.text.encode()[10:].decode()
    (end,) = service.call('/logs', run_name='finished', offset=whole.tags['offset'])
    assert not end.text


def test_the_log_is_streamed_over_grpc_and_http(service, finished_run):
    (whole,) = service.call('/logs', run_name='finished')
    tags = {'run_name': 'finished', 'token': service.token}
    assert ''.join(answer.text for answer in service.channel.stream('/logstream', tags)) == whole.text
    tags['offset'] = 10
    assert ''.join(answer.text for answer in service.channel.stream('/logstream', tags)) == whole.text[10:]

    url = f'http://127.0.0.1:{service.http_port}/logstream'
    headers = {'Authorization': f'Bearer {service.token}'}
    response = requests.get(url, params={'run_name': 'finished'}, headers=headers, timeout=60)
    assert response.headers['content-type'].startswith('text/event-stream')
    assert response.text.rstrip().endswith('event: end')
    assert 'Training' in response.text


def test_metrics_and_examples_before_and_after(service, finished_run):
    metrics = service.tags('/metrics', run_name='finished')
    assert set(metrics) == {'before', 'after'}
    assert 0 < metrics['after']['average_precision'] <= 1
    examples = service.tags('/examples', run_name='finished')
    assert set(examples) == {'before', 'after', 'relevant before', 'relevant after'}
    assert all(isinstance(matches, list) for matches in examples['after'].values())


def test_runs_are_listed(service, finished_run):
    listed = service.call('/runs')[0].tags
    assert finished_run['artifact_id'] in [run['artifact_id'] for run in listed['items']]
    page = service.tags('/runs', size=1)
    assert (len(page['items']), page['page'], page['size'], page['total']) == (1, 1, 1, listed['total'])
    assert service.tags('/runs', experiment_name='default', page=1000)['items'] == []
    assert service.post('/runs', experiment_name='nowhere').status_code == 400
    assert service.post('/runs', size=101).status_code == 422


def test_an_artifact_comes_in_pieces(service, finished_run):
    pieces, tags = [], {'size': 1.0}
    while sum(map(len, pieces)) < tags['size']:
        (answer,) = service.call(
            '/artifact', artifact_id=finished_run['artifact_id'], offset=sum(map(len, pieces)), length=100_000
        )
        pieces.append(answer.blob)
        tags = answer.tags
    content = b''.join(pieces)
    assert hashlib.sha256(content).hexdigest() == tags['sha256']
    assert 'finished/metadata.yml' in zipfile.ZipFile(io.BytesIO(content)).namelist()
    with pytest.raises(ArtifactError, match='no artifact'):
        service.call('/artifact', artifact_id='f' * 24)


@pytest.mark.parametrize('reference', ['default/finished', 'served@elsewhere'])
def test_an_executor_elsewhere_serves_what_a_reference_means(service, finished_run, reference, monkeypatch):
    service.call('/promote', alias='served@elsewhere', artifact='default/finished')
    monkeypatch.setenv('FINETUNER_HOST', f'grpc://localhost:{service.port}')
    executor = FinetunerExecutor(reference, token=service.token)
    try:
        answered = asyncio.run(executor.encode(docs=DocumentArray([Document(text='fig')]), parameters={}))
        assert executor.served.artifact_id == finished_run['artifact_id']
        assert answered[0].embedding is not None
    finally:
        executor.close()
        service.call('/delete_alias', alias='served@elsewhere')


def test_a_run_that_fails_says_why(service, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    service.fit(tmp_path, 'failing')
    run = service.wait_for('failing', 'FAILED', 'FINISHED')
    assert run['status'] == 'FAILED'
    assert run['details']
    assert service.call('/logs', run_name='failing')[0].text
    with pytest.raises(RunFailedError, match="'failing' failed: "):
        service.call('/metrics', run_name='failing')
    assert service.post('/examples', run_name='failing').status_code == 409


def test_encode_gives_embeddings(service):
    documents = service.call('/encode', [Document(id=str(i), text=f'text {i}') for i in range(300)], token=None)
    assert [document.id for document in documents] == [str(i) for i in range(300)]
    assert documents.embeddings.shape == (300, 32)
    assert documents.embeddings.dtype == np.float32
    response = service.post('/encode', [{'text': f'text {i}'} for i in range(300)], token=None)
    assert np.allclose([document['embedding'] for document in response.json()['data']], documents.embeddings, atol=1e-5)


def test_a_text_that_cannot_be_encoded_is_named_and_the_service_goes_on(service):
    documents = [Document(text='fine'), Document(id='the-bad-one', uri='file:///a.png')]
    with pytest.raises(ValueError, match=r"document 1 \(id 'the-bad-one'\)"):
        service.call('/encode', documents)
    assert service.call('/encode', documents[:1]).embeddings.shape == (1, 32)


def test_unknown_parameters_are_refused(service):
    with pytest.raises(ParameterError, match="'run_nmae' is unknown"):
        service.call('/status', run_nmae='finished')


def test_empty_requests_are_answered(service):
    assert service.call('/encode', DocumentArray()) == DocumentArray()
    assert service.post('/encode', []).json() == {'data': []}
