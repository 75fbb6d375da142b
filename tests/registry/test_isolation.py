"""Another account, which knows all names and ids of the first one, sees nothing and changes nothing: call by call."""

import inspect

import pytest

from finetuner.excepts import ArtifactError, RegistryError
from registry import Page, Registry

# for whoever runs the service, or for the service itself: no owner is checked
OF_THE_SERVICE = {'set_quota', 'delete_account'}
MISSING = 'x' * 20
MISSING_ID = 'f' * 24


@pytest.fixture
def theirs(registry, account, documents, finished_run):
    """What the first account has, by the names that the table of calls uses."""
    registry.append_documents(account, 'intents', documents(3))
    run = finished_run('support', 'done')
    registry.create_run(account, 'support', 'waiting', {}, datasets=['intents'])
    registry.promote(account, 'support@production', run.artifact_id)
    registry.create_token(account, 'laptop')
    [_, token] = registry.list_tokens(account).items
    return {
        'dataset': 'intents',
        'experiment': 'support',
        'run': 'done',
        'artifact': run.artifact_id,
        'alias': 'support@production',
        'token': token.id,
    }


MISSING_THINGS = {
    'dataset': MISSING,
    'experiment': MISSING,
    'run': MISSING,
    'artifact': MISSING_ID,
    'alias': f'{MISSING}@production',
    'token': MISSING_ID,
}

# calls that name a thing: they fail as for a thing that is not there
NAMING = {
    'get_dataset': [lambda call, who, it: call(who, it['dataset'])],
    'list_shards': [lambda call, who, it: call(who, it['dataset'])],
    'delete_dataset': [lambda call, who, it: call(who, it['dataset'])],
    'create_run': [lambda call, who, it: call(who, 'new', 'run', {}, datasets=[it['dataset']])],
    'get_run': [lambda call, who, it: call(who, it['experiment'], it['run'])],
    'list_runs': [lambda call, who, it: call(who, it['experiment'])],
    'delete_run': [lambda call, who, it: call(who, it['experiment'], it['run'])],
    'delete_runs': [lambda call, who, it: call(who, it['experiment'])],
    'get_experiment': [lambda call, who, it: call(who, it['experiment'])],
    'delete_experiments': [lambda call, who, it: call(who, [it['experiment']])],
    'get_artifact': [lambda call, who, it: call(who, it['artifact'])],
    'find_artifact': [
        lambda call, who, it: call(who, it['artifact']),
        lambda call, who, it: call(who, f'{it["experiment"]}/{it["run"]}'),
        lambda call, who, it: call(who, it['alias']),
    ],
    'promote': [
        lambda call, who, it: call(who, 'mine@stage', it['artifact']),
        lambda call, who, it: call(who, 'mine@stage', f'{it["experiment"]}/{it["run"]}'),
        lambda call, who, it: call(who, 'mine@stage', it['alias']),
    ],
    'roll_back': [lambda call, who, it: call(who, it['alias'])],
    'get_promotion': [lambda call, who, it: call(who, it['alias'])],
    'list_history': [lambda call, who, it: call(who, it['alias'])],
    'delete_alias': [lambda call, who, it: call(who, it['alias'])],
    'revoke_token': [lambda call, who, it: call(who, it['token'])],
}
# calls for all that an account has: there is nothing
LISTING = {
    'list_datasets': Page([], 0, 1, 50),
    'list_runs': Page([], 0, 1, 50),
    'list_experiments': Page([], 0, 1, 50),
    'list_artifacts': Page([], 0, 1, 50),
    'list_promotions': Page([], 0, 1, 50),
    'list_tokens': Page([], 0, 1, 50),
    'delete_runs': [],
    'delete_experiments': [],
}
# calls that make a thing: under a name that the first account has they make one of their own
MAKING = {
    'append_documents': lambda call, who, documents: call(who, 'intents', documents(1), part=0),
    'create_run': lambda call, who, documents: call(who, 'support', 'done', {'other': 1}),
    'create_experiment': lambda call, who, documents: call(who, 'support', 'mine'),
    'create_token': lambda call, who, documents: call(who, 'laptop'),
    'issue_token': lambda call, who, documents: call(who, 'laptop'),
    'usage': lambda call, who, documents: call(who),
}


def test_every_call_of_an_account_is_in_a_table():
    taking = {
        name
        for name, method in inspect.getmembers(Registry, inspect.isfunction)
        if not name.startswith('_') and 'account_id' in inspect.signature(method).parameters
    }
    assert taking == NAMING.keys() | LISTING.keys() | MAKING.keys() | OF_THE_SERVICE


def test_a_call_that_names_a_thing_of_another_fails_as_for_nothing(registry, account, theirs, dump, stored_files):
    other = registry.create_account('other').id
    before = dump(), stored_files()

    def message(use, name, things):
        with pytest.raises((RegistryError, ArtifactError)) as raised:
            use(getattr(registry, name), other, things)
        text = str(raised.value)
        for value in sorted(things.values(), key=len, reverse=True):
            text = text.replace(value, '?')
        return type(raised.value), text

    for name, uses in NAMING.items():
        for use in uses:
            found = message(use, name, theirs)
            assert found == message(use, name, MISSING_THINGS), name
            assert not any(word in found[1] for word in ('intents', 'support', 'done', 'laptop')), found
            assert (dump(), stored_files()) == before, name


def test_a_call_for_all_finds_nothing_of_another(registry, account, theirs, dump, stored_files):
    other = registry.create_account('other').id
    before = dump(), stored_files()
    for name, expected in LISTING.items():
        assert getattr(registry, name)(other) == expected, name
        assert (dump(), stored_files()) == before, name


def test_a_call_that_makes_a_thing_touches_nothing_of_another(registry, account, theirs, documents, dump, stored_files):
    other = registry.create_account('other').id
    before, files = dump(), stored_files()
    for name, use in MAKING.items():
        use(getattr(registry, name), other, documents)
        after = dump()
        for table, rows in before.items():
            assert set(rows) <= set(after[table]), (name, table)
        assert set(files) <= set(stored_files()), name
    assert registry.usage(other).runs == 1
    # and what it made is its own: the first account sees no more than it did
    assert registry.list_runs(account).total == 2 and registry.list_datasets(account).total == 1


def test_nobody_at_all_sees_only_what_is_public(registry, theirs):
    for reference in (theirs['artifact'], theirs['alias'], 'support/done'):
        with pytest.raises(ArtifactError, match='that you may read'):
            registry.find_artifact(None, reference)
