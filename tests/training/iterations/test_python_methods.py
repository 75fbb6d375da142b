"""A method whose class is of the operator decides what clicks say, and where items come from."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from registry import Registry
from training.iterations.material import gather
from training.methods import load_method

CLASS = """
import dataclasses
from training.methods import LoadedItems, Method

class OurShop(Method):
    regulars: list[str]

    def feedback(self, sessions):
        sessions = list(sessions)
        users = {session.session_id: session.user_id for session in sessions}
        return [
            dataclasses.replace(entry, clicks=entry.clicks * (3 if users[entry.session_id] in self.regulars else 1))
            for entry in super().feedback(sessions)
        ]

    def load_items(self, sessions, directory):
        ids = {result.object_id for session in sessions for result in session.search_results}
        return LoadedItems({name: f'from our catalogue: {name}' for name in ids})
"""


@pytest.fixture
def method(tmp_path, monkeypatch):
    values = {
        'name': 'our-shop',
        'class': 'our_shop.OurShop',
        'model': 'all-minilm-l6-v2',
        'items': {'loader': 'inline'},
        'clicks': {'position_bias': 'none'},
        'regulars': ['ann'],
    }
    folder = tmp_path / 'methods'
    folder.mkdir()
    (folder / 'our_shop.py').write_text(CLASS)
    (folder / 'shop.yml').write_text(yaml.safe_dump(values))
    monkeypatch.setenv('FINETUNER_METHODS', str(folder))
    return load_method('our-shop')


def test_clicks_and_items_are_as_the_class_has_them(method, tmp_path):
    with Registry.open(tmp_path / 'home') as registry:
        account = registry.get_account().id
        for number in range(30):
            name, results = f's{number}', [{'object_id': f'p{number}'}, {'object_id': f'q{number}'}]
            user = 'ann' if number % 2 else 'bob'
            registry.clicks.register_session(account, name, f'query {number}', results, user_id=user)
            registry.clicks.register_events(account, name, [{'event_id': 'e', 'object_id': f'p{number}'}])
        batch = registry.clicks.release_batch(account, 'r')
        material = gather(registry, account, batch.id, method, 0, tmp_path)
    assert material.items['q7'] == 'from our catalogue: q7' and len(material.items) == 60
    entries = [*material.validation.sessions, *material.test.sessions]
    wanted = {int(entry.session_id[1:]) % 2: float(entry.clicks[0]) for entry in entries}
    assert wanted == {1: 3.0, 0: 1.0}
    assert all(np.array_equal(entry.clicks[1:], [0.0]) for entry in entries)
