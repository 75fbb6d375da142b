"""An iteration of CLIP: texts are searched, and images are found."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from PIL import Image

from finetuner.inference import load_engine
from tests.training.iterations.shopkeeper import METHOD, Shopkeeper

COLOURS = ['red', 'green', 'blue', 'yellow', 'black', 'white']
THINGS = ['shoe', 'hat', 'sock', 'scarf', 'coat', 'bag']
IMAGES = {
    **METHOD,
    'items': {'loader': 'folder', 'root': 'images', 'modality': 'image', 'address': 'file'},
    'loss': 'CosineProbMarginRankingLoss',
    'fit': {'epochs': 2, 'batch_size': 32, 'device': 'cpu'},
    'search': {
        'evaluations': 2,
        'space': {
            'optimizer_options.clip-text.lr': {'low': 1e-4, 'high': 1e-3, 'log': True},
            'optimizer_options.clip-vision.lr': [1e-4, 1e-3],
        },
    },
}


@pytest.fixture
def make(tmp_path, empty_mlflow, monkeypatch):
    """Someone who sells things of a colour, whom customers have found by images."""
    torch.set_num_threads(1)
    made = []

    def make(model):
        keeper = Shopkeeper.with_method(tmp_path, model, IMAGES)
        made.append(keeper)
        shutil.copyfile(empty_mlflow, keeper.home / 'mlflow.db')
        keeper.set_variables(monkeypatch)
        (keeper.home / 'images').mkdir()
        for colour in COLOURS:
            Image.new('RGB', (32, 32), colour).save(keeper.home / 'images' / f'{colour}.png')
        chance = random.Random(0)
        for number in range(4 * len(COLOURS) * len(THINGS)):
            colour, thing = COLOURS[number % 6], THINGS[number // 6 % 6]
            shown = chance.sample(COLOURS, 6)
            results = [{'object_id': name, 'meta': {'file': f'{name}.png'}} for name in [*shown, 'lost']]
            keeper.registry.clicks.register_session(keeper.account, f's{number}', f'{colour} {thing}', results)
            keeper.registry.clicks.register_events(
                keeper.account, f's{number}', [{'event_id': f'e{number}', 'object_id': colour}]
            )
        return keeper

    yield make
    for keeper in made:
        keeper.registry.close()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['tiny_clip', 'tiny_open_clip'])
def test_a_task_of_images_ends_with_a_verdict_and_a_model(make, request, kind):
    keeper = make(request.getfixturevalue(kind))
    task = keeper.work(keeper.ask())
    assert task.status == 'done' and task.details.startswith(('Promoted to ', 'Not promoted: ')), task.details
    assert task.metrics['trainings'] == 2 and 0 < task.metrics['after']['ndcg_at_10'] <= 1
    assert task.metrics['parameters'].keys() == IMAGES['search']['space'].keys()
    path = keeper.registry.artifact_file(keeper.registry.get_artifact(keeper.account, task.artifact_id))
    texts = load_engine(path, select_model='clip-text', device='cpu').encode_texts(['red shoe'])
    images = load_engine(path, select_model='clip-vision', device='cpu').encode_contents(
        [str(keeper.home / 'images' / 'red.png')]
    )
    assert texts.shape == images.shape and texts.shape[0] == 1
