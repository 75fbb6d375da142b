"""Items that can be searched for, on SQLite and on PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetuner.excepts import QuotaError, RegistryError
from registry.search_items import ITEM_BYTES, NewItem

EMBEDDING = bytes(16)


def items(*names, text='a shoe', meta=None):
    return [NewItem(name, text, meta, EMBEDDING) for name in names]


def test_of_an_item_that_is_there_twice_the_last_counts(registry, account):
    registry.items.upsert(account, 'model', [*items('a', text='first'), *items('a', text='last')])
    assert [(item.object_id, item.text) for item in registry.items.read()] == [('a', 'last')]


def test_meta_has_an_end(registry, account):
    with pytest.raises(RegistryError, match="meta of 'a' has .* bytes of JSON: at most 65536 are taken"):
        registry.items.upsert(account, 'model', items('a', 'b', meta={'text': 'x' * (64 << 10)}))
    assert registry.items.read() == []


def test_an_account_has_so_many_bytes_of_items(registry, account, monkeypatch):
    monkeypatch.setenv('FINETUNER_SEARCH_BYTES', str(2 * ITEM_BYTES + 100))
    registry.items.upsert(account, 'model', items('a', 'b'))
    for names, text in (('cd', 'a shoe'), ('b', 'x' * 100)):
        with pytest.raises(QuotaError, match='search items of the account would take .*FINETUNER_SEARCH_BYTES'):
            registry.items.upsert(account, 'model', items(*names, text=text))
    registry.items.upsert(account, 'model', items('a', text='a hat'))
    assert {item.object_id: item.text for item in registry.items.read()} == {'a': 'a hat', 'b': 'a shoe'}
    usage = registry.usage(account)
    assert (usage.search_items.count, usage.max_search_bytes) == (2, 2 * ITEM_BYTES + 100)
    assert 2 * ITEM_BYTES < usage.search_items.bytes <= usage.max_search_bytes
    registry.items.delete(account, ['b'])
    assert registry.usage(account).search_items.count == 1
    registry.items.upsert(account, 'model', items('c'))
    registry.items.upsert(registry.create_account('other').id, 'model', items('a', 'b'))


def test_writers_of_the_same_items_in_any_order_go_on(registry, account):
    names = [f'item-{number:03}' for number in range(40)]
    registry.items.upsert(account, 'model', items(*names))
    known = [(item.id, item.revision) for item in registry.items.read()]
    gate = threading.Barrier(4)

    def write(change):
        gate.wait()
        for _ in range(3):
            change()

    changes = [
        lambda: registry.items.upsert(account, 'model', items(*names)),
        lambda: registry.items.upsert(account, 'model', items(*reversed(names))),
        lambda: registry.items.set_embeddings('model', dict.fromkeys(reversed(known), EMBEDDING)),
        lambda: registry.items.delete(account, names[::7]),
    ]
    with ThreadPoolExecutor(len(changes)) as pool:
        list(pool.map(write, changes))
