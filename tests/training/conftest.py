"""Small labelled data: texts of a few topics, each with words of its own among words that all use."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import torch

from finetuner.inference.text_encoder import TextEncoder
from training.data import LabelledTexts, TokenisedTexts, tokenise
from training.progress import Reporter

TOPICS = {
    'card': ['card', 'plastic', 'chip', 'contactless'],
    'rate': ['rate', 'exchange', 'currency', 'euro'],
    'pin': ['pin', 'secret', 'code', 'blocked'],
    'refund': ['refund', 'back', 'return', 'reverted'],
    'top up': ['top', 'up', 'load', 'deposit'],
    'identity': ['identity', 'passport', 'verify', 'proof'],
}
FILLERS = [
    'how', 'do', 'i', 'get', 'my', 'why', 'is', 'the', 'not', 'please', 'what', 'now', 'about', 'when', 'can', 'you',
    'help', 'with', 'a', 'to', 'it',
]  # fmt: skip


def write_csv(path: Path, rows: int, seed: int) -> Path:
    """A CSV file with a header, of `rows` texts of 3 to 14 words, topics in turn."""
    chance = random.Random(seed)
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['text', 'category'])
        for row in range(rows):
            topic = list(TOPICS)[row % len(TOPICS)]
            words = chance.sample(TOPICS[topic], 2) + chance.choices(FILLERS, k=chance.randint(1, 12))
            chance.shuffle(words)
            writer.writerow([' '.join(words), topic])
    return path


@pytest.fixture(scope='session')
def train_csv(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp('train') / 'train.csv', 120, seed=1)


@pytest.fixture(scope='session')
def test_csv(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp('test') / 'test.csv', 48, seed=2)


@pytest.fixture
def encoder(tiny_model) -> TextEncoder:
    """In evaluation mode, so that dropout is off."""
    return TextEncoder.load(tiny_model)


@pytest.fixture
def tokenised(encoder, train_csv, tmp_path) -> TokenisedTexts:
    texts = LabelledTexts.from_csv(train_csv, tmp_path / 'data')
    return tokenise(texts, encoder.tokenizer, encoder.max_length, tmp_path / 'data', Reporter())


@pytest.fixture(autouse=True)
def two_threads():
    """Bits are promised for one machine: its number of threads is a part of that."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
