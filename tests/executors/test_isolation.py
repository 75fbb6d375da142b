"""Every endpoint, called by another account with the names and ids of the first one: nothing seen, nothing changed."""

import asyncio
import inspect
import re

import numpy as np
import pytest
from sqlalchemy import select

from executors.clicks import ClickstreamExecutor
from executors.dataset import DatasetExecutor
from executors.encoder import FinetunerExecutor
from executors.parameters import TokenParameters
from executors.search import SearchExecutor
from executors.trainer import TrainerExecutor
from finetuner import settings
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, AuthenticationError, ParameterError, RegistryError
from registry.models import Base

# what needs no account, unless the operator says otherwise: its own tests tell
OPEN = {'/encode', '/encode_texts'}
NOTHING = {'items': [], 'total': 0}
RUN = {'run_name': 'done', 'experiment_name': 'support'}
# by endpoint: parameters that name what the first account has, and what is answered: an error, or these tags
TABLE = {
    '/fit': [({'model': 'all-minilm-l6-v2', 'train_data': 'intents', 'run_name': 'r'}, RegistryError)],
    '/status': [(RUN, RegistryError)],
    '/cancel': [(RUN, RegistryError)],
    '/resume': [(RUN, RegistryError)],
    '/logs': [(RUN, RegistryError)],
    '/logstream': [(RUN, RegistryError)],
    '/metrics': [(RUN, RegistryError)],
    '/examples': [(RUN, RegistryError)],
    '/delete_run': [(RUN, RegistryError)],
    '/runs': [({}, NOTHING), ({'experiment_name': 'support'}, RegistryError)],
    '/delete_runs': [({}, {'deleted': 0}), ({'experiment_name': 'support'}, RegistryError)],
    '/experiment': [({'name': 'support'}, RegistryError)],
    '/experiments': [({}, NOTHING)],
    '/delete_experiments': [({}, {'items': []}), ({'names': ['support']}, RegistryError)],
    '/artifact': [
        ({'artifact_id': 'ID'}, ArtifactError),
        ({'artifact_id': 'support/done'}, ArtifactError),
        ({'artifact_id': 'support@production'}, ArtifactError),
    ],
    '/artifacts': [({}, NOTHING)],
    '/promote': [
        ({'alias': 'mine@stage', 'artifact': 'ID'}, ArtifactError),
        ({'alias': 'mine@stage', 'artifact': 'support@production'}, ArtifactError),
    ],
    '/rollback': [({'alias': 'support@production'}, RegistryError)],
    '/alias': [({'alias': 'support@production'}, RegistryError)],
    '/aliases': [({}, NOTHING)],
    '/delete_alias': [({'alias': 'support@production'}, RegistryError)],
    '/revoke_token': [({'id': 'TOKEN'}, RegistryError)],
    '/datasets': [({}, NOTHING)],
    '/dataset': [({'name': 'intents'}, RegistryError)],
    '/delete_dataset': [({'name': 'intents'}, RegistryError)],
    '/usage': [({}, {'account': 'other', 'runs': {'waiting': 0, 'at_work': 0, 'total': 0}})],
    '/whoami': [({}, {'account': 'other'})],
    '/mark_irrelevant': [({'session_id': 'visit'}, RegistryError)],
    '/click_session': [({'session_id': 'visit'}, RegistryError)],
    '/batch': [({'batch_id': 'BATCH'}, RegistryError)],
    '/batches': [({}, NOTHING)],
    '/batch_sessions': [({'batch_id': 'BATCH'}, {'sessions': [], 'last_number': None})],
    '/delete_sessions': [({'user_id': 'ann'}, {'deleted': 0}), ({'older_than_days': 0}, {'deleted': 0})],
    '/release_batch': [({'release_id': 'released'}, RegistryError)],
    '/tuning_task': [({'task_id': 'TASK'}, RegistryError)],
    '/tuning_tasks': [({}, {'items': []})],
    '/delete_items': [({'object_ids': ['p1']}, {'deleted': 0})],
    '/cancel_tuning_task': [({'task_id': 'TASK'}, RegistryError)],
    '/restart_tuning_task': [({'task_id': 'TASK'}, RegistryError)],
    # these make something for the account that calls, also where another has one of the name: last, they change tables
    '/tokens': [({}, {'total': 1})],
    '/create_token': [({'name': 'laptop'}, {'name': 'laptop'})],
    '/create_experiment': [({'name': 'support'}, {'description': '', 'runs': 0})],
    '/ingest': [({'name': 'intents', 'part': 0}, {'rows': 1})],
    '/register_session': [({'session_id': 'visit', 'search_query': 'q', 'search_results': []}, {'is_new': True})],
    '/register_events': [({'session_id': 'visit', 'events': [{'event_id': 'e', 'object_id': 'a'}]}, {'added': 1})],
    '/create_tuning_task': [
        ({'fine_tuning_method': 'text-to-text', 'batch_id': 'BATCH'}, RegistryError),
        ({'fine_tuning_method': 'text-to-text', 'idempotency_key': 'key'}, {'status': 'pending'}),
    ],
    # the session of that id shows another query
    '/search': [
        ({}, {'search_results': [], 'session_id': None}),
        ({'create_session': True, 'session_id': 'shown'}, {'search_results': [], 'session_id': 'shown'}),
    ],
    '/upsert': [({}, {'upserted': 1})],
}
MAKING = {
    '/create_token',
    '/create_experiment',
    '/ingest',
    '/register_session',
    '/register_events',
    '/create_tuning_task',
    '/search',
    '/upsert',
}
# what comes with a call: an item of the first account's id is one of its own to another
DOCUMENTS = {
    '/ingest': [Document(text='mine', tags={})],
    '/upsert': [Document(id='p1', text='mine')],
    '/search': [Document(text='mine')],
}


@pytest.fixture
def executors(tiny_model):
    made = [DatasetExecutor(), TrainerExecutor(), ClickstreamExecutor(), SearchExecutor(model=str(tiny_model))]
    made[1].supervisor.close()
    yield made
    for executor in made:
        executor.close()


@pytest.fixture
def call(executors):
    """Calls an endpoint as Jina does, and returns the tags of the document that answers."""

    def post(endpoint, **parameters):
        executor = next(executor for executor in executors if endpoint in executor.requests)
        method = getattr(executor, executor.requests[endpoint].fn.__name__)
        if 'doc' in inspect.signature(method).parameters:

            async def first():
                return await anext(method(Document(tags=parameters)))

            return asyncio.run(first()).tags
        documents = DocumentArray(DOCUMENTS.get(endpoint, []))
        model = inspect.signature(method).parameters['parameters'].annotation
        answer = method(documents, parameters=model(**parameters))
        if inspect.iscoroutine(answer):
            answer = asyncio.run(answer)
        return answer[0].tags

    return post


@pytest.fixture
def registry(executors):
    return executors[1].registry


@pytest.fixture
def names(executors, registry, tmp_path):
    """Make what the first account has; the value is what stands for its ids in the table."""
    account = registry.get_account().id
    documents = [Document(text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
    registry.append_documents(account, 'intents', documents, part=0)
    run, _ = registry.create_run(account, 'support', 'done', {}, datasets=['intents'])
    registry.start_run(run.id, 'host:1')
    (tmp_path / 'a.zip').write_bytes(b'zip')
    registry.finish_run(run.id, tmp_path / 'a.zip', {}, {})
    registry.promote(account, 'support@production', run.artifact_id)
    registry.clicks.register_session(account, 'visit', 'shoes', [{'object_id': 'a'}], user_id='ann')
    registry.clicks.register_events(account, 'visit', [{'event_id': 'e', 'object_id': 'a'}])
    registry.clicks.register_session(account, 'shown', 'socks', [{'object_id': 'p1'}], user_id='bob')
    own = TokenParameters(token=settings.load_token())
    executors[3].upsert(DocumentArray([Document(id='p1', text='wool socks')]), parameters=own)
    batch = registry.clicks.release_batch(account, 'released')
    task, _ = registry.tuning.create_task(account, 'shop', {}, batch_id=batch.id, idempotency_key='key')
    return {
        'ID': run.artifact_id,
        'TOKEN': registry.list_tokens(account).items[0].id,
        'BATCH': batch.id,
        'TASK': task.id,
    }


@pytest.fixture
def dump(executors, registry):
    """Reads all that the accounts have: rows by their tables, and what the first one finds."""

    def read():
        index, account = executors[3].searched.index, registry.get_account().id
        found = {repr(hit) for hit in index.search(account, np.ones(24, np.float32), 10)}
        with registry.database.read() as session:
            tables = Base.metadata.sorted_tables
            rows = {table.name: {repr(row) for row in session.execute(select(table))} for table in tables}
        return {**rows, 'index': found}

    return read


def test_every_endpoint_is_in_the_table(executors):
    found = {
        name
        for executor in (DatasetExecutor, ClickstreamExecutor, TrainerExecutor, SearchExecutor, FinetunerExecutor)
        for name in executor.requests_by_class[executor.__name__]
        if name.startswith('/') and name != '/default'
    }
    assert found == TABLE.keys() | OPEN


def test_nothing_of_another_account_is_seen_or_changed(registry, call, names, dump):
    other = registry.create_account('other').id
    token = registry.create_token(other, 'first')
    before = dump()
    for endpoint, cases in TABLE.items():
        for parameters, expected in cases:
            parameters = {
                name: names.get(value, value) if isinstance(value, str) else value for name, value in parameters.items()
            }
            if isinstance(expected, dict):
                tags = call(endpoint, token=token, **parameters)
                assert expected.items() <= tags.items(), endpoint
            else:
                with pytest.raises(expected) as raised:
                    call(endpoint, token=token, **parameters)
                assert re.search('^There is no | not found$', str(raised.value)), endpoint
                assert 'similar' not in str(raised.value) and 'there are:' not in str(raised.value), endpoint
            after = dump()
            assert after['index'] == before['index'], endpoint
            assert all(rows <= after[table] for table, rows in before.items()), endpoint
            assert endpoint in MAKING or after == before, endpoint


@pytest.mark.parametrize('state', ['missing', 'unknown', 'revoked'])
def test_without_a_good_token_no_endpoint_does_anything(registry, call, names, dump, state):
    token = registry.create_token(registry.get_account().id, 'bad')
    if state == 'revoked':
        registry.revoke_token(registry.get_account().id, registry.list_tokens(registry.get_account().id).items[1].id)
    given = {'missing': {}, 'unknown': {'token': 'x' * 43}, 'revoked': {'token': token}}[state]
    before = dump()
    for endpoint, cases in TABLE.items():
        for parameters, _ in cases:
            with pytest.raises(AuthenticationError):
                call(endpoint, **given, **parameters)
    assert dump() == before


def test_tokens_are_made_listed_and_revoked(registry, call):
    token = registry.create_token(registry.get_account().id, 'mine')
    made = call('/create_token', token=token, name='laptop', days=0.5)
    assert registry.authenticate(made['token']).name == 'local'
    assert made['expires_at'] > made['created_at']
    listed = call('/tokens', token=made['token'])
    assert [item['name'] for item in listed['items']] == ['first-start', 'mine', 'laptop'] and listed['total'] == 3
    assert not any(made['token'] in str(item) or 'token' in item for item in listed['items'])
    assert call('/create_token', token=token, name='forever')['expires_at'] is None
    # the token that asks
    assert call('/revoke_token', token=made['token'], id=made['id'])['revoked_at']
    for endpoint, parameters in (('/revoke_token', {'id': made['id']}), ('/create_token', {'name': 'again'})):
        with pytest.raises(AuthenticationError, match="The token 'laptop' was revoked"):
            call(endpoint, token=made['token'], **parameters)


@pytest.mark.parametrize('days', [0, -1, float('nan'), float('inf'), 1e9, 'soon'])
def test_the_days_of_a_token_are_checked(registry, call, days):
    token = registry.create_token(registry.get_account().id, 'mine')
    with pytest.raises(ParameterError, match="'days'"):
        call('/create_token', token=token, name='laptop', days=days)


def test_data_sets_usage_and_aliases_are_told(registry, call, names):
    token = registry.create_token(registry.get_account().id, 'mine')
    [listed] = call('/datasets', token=token)['items']
    assert (listed['name'], listed['rows'], listed['modalities']) == ('intents', 8, ['text'])
    found = call('/dataset', token=token, name='intents')
    assert listed.items() <= found.items() and found['parts_total'] == 1
    assert found['parts'][0]['part'] == 0 and len(found['parts'][0]['sha256']) == 64
    usage = call('/usage', token=token)
    assert usage['datasets'] == {'count': 1, 'bytes': listed['size']}
    assert (usage['artifacts'], usage['checkpoints']) == ({'count': 1, 'bytes': 3}, {'count': 0, 'bytes': 0})
    assert (usage['runs'], usage['max_bytes'], usage['max_runs']) == (
        {'waiting': 1, 'at_work': 0, 'total': 2},
        None,
        None,
    )
    [artifact] = call('/artifacts', token=token)['items']
    assert (artifact['id'], artifact['run_name'], artifact['aliases']) == (names['ID'], 'done', ['support@production'])
    made = call('/promote', token=token, alias='b@c', artifact='support/done')
    assert (made['alias'], made['artifact_id'], made['number'], made['previous']) == ('b@c', names['ID'], 1, None)
    aliases = call('/aliases', token=token)
    assert [item['alias'] for item in aliases['items']] == ['b@c', 'support@production'] and aliases['total'] == 2
    alias = call('/alias', token=token, alias='b@c')
    assert alias['artifact_id'] == names['ID'] and [item['number'] for item in alias['history']] == [1]
    with pytest.raises(RegistryError, match='nothing to roll'):
        call('/rollback', token=token, alias='b@c')
    assert call('/delete_alias', token=token, alias='b@c')['artifact_id'] == names['ID']
    assert call('/delete_dataset', token=token, name='intents')['rows'] == 8
    assert call('/datasets', token=token)['items'] == []
