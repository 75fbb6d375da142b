"""Small labelled data: texts of a few topics, each with words of its own among words that all use."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from finetuner.inference.text_encoder import TextEncoder

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


@pytest.fixture(scope='session')
def word_model(tmp_path_factory) -> Path:
    """The directory of a small BERT with random weights whose tokens are the words of the data."""
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    words = sorted({word for topic in TOPICS.values() for word in topic} | set(FILLERS))
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(special + words)}, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    names = ('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token')
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, special, strict=True)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(special) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    encoder = TextEncoder(BertModel(config), fast, normalize=True, max_length=32)
    return encoder.save(tmp_path_factory.mktemp('words') / 'model')


@pytest.fixture
def encoder(word_model) -> TextEncoder:
    """In evaluation mode, so that dropout is off."""
    return TextEncoder.load(word_model)


@pytest.fixture(scope='module', autouse=True)
def two_threads():
    """Bits are promised for one machine: its number of threads is a part of that.

    Of a module, so that it is set before what a module's fixtures train, whatever the module before has left.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
