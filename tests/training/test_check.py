from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetuner.excepts import DataError
from training.check import check_data
from training.config import FitConfig


@dataclass
class Data:
    shape: str = 'items'
    modalities: tuple[str, ...] = ('text',)
    labelled: bool = False
    scored: bool = False
    name: str = 'x'


LABELLED = Data(labelled=True)
PAIRS = Data('pairs', ('text', 'text'))
SCORED = Data('pairs', ('text', 'text'), scored=True)
TRIPLETS = Data('triplets', ('text',) * 3, scored=True)
LOSSES = {
    'TripletMarginLoss': [LABELLED, PAIRS],
    'ArcFaceLoss': [LABELLED, PAIRS],
    'MultipleNegativeRankingLoss': [PAIRS],
    'CosineSimilarityLoss': [SCORED],
    'MarginMSELoss': [TRIPLETS],
}


def config(loss='TripletMarginLoss', model='m', **arguments):
    return FitConfig.from_arguments(model=model, train_data='x', loss=loss, **arguments)


@pytest.mark.parametrize('loss', LOSSES)
def test_a_loss_takes_its_shapes_and_no_other(loss):
    for data in (LABELLED, Data(), PAIRS, SCORED, TRIPLETS):
        if data in LOSSES[loss]:
            check_data(config(loss), data)
        else:
            with pytest.raises(DataError, match=f'{loss} learns from .*, and the data set .x. holds'):
                check_data(config(loss), data)


@pytest.mark.parametrize(
    ('loss', 'data', 'sentence'),
    [
        ('CosineSimilarityLoss', LABELLED, "learns from scored pairs, and the data set 'x' holds labelled texts"),
        ('TripletMarginLoss', Data(), "'x' holds unlabelled texts: each needs tags['finetuner_label']"),
        ('TripletMarginLoss', SCORED, "'x' holds scored pairs of texts: use CosineSimilarityLoss, or leave the scores"),
        (
            'MarginMSELoss',
            Data('pairs', ('text', 'image'), labelled=True),
            'holds labelled pairs of a text and an image',
        ),
        ('CLIPLoss', Data('items', ('image',), labelled=True), "and the data set 'x' holds labelled images"),
    ],
)
def test_the_sentence_says_what_is_needed_and_what_is_there(loss, data, sentence):
    with pytest.raises(DataError) as caught:
        check_data(config(loss), data)
    assert sentence in str(caught.value)


def test_queries_and_indexes_need_labels_or_pairs():
    for role in ('query', 'index'):
        check_data(config('CosineSimilarityLoss'), LABELLED, role)
        check_data(config('CosineSimilarityLoss'), PAIRS, role)
        with pytest.raises(DataError, match=f'{role}_data is to tell .*, and the data set .x. holds unlabelled texts'):
            check_data(config('CosineSimilarityLoss'), Data(), role)


@pytest.mark.parametrize(
    ('model', 'modality', 'sentence'),
    [
        (
            'all-minilm-l6-v2',
            'image',
            'the model all-minilm-l6-v2 reads texts, and the data set .x. holds labelled images',
        ),
        ('resnet50', 'text', 'the model resnet50 reads images, '),
        ('mlp', 'text', 'the model mlp reads tensors, '),
    ],
)
def test_a_model_reads_its_kind(model, modality, sentence):
    options = {'model_options': {'input_size': 4, 'hidden_sizes': [2]}} if model == 'mlp' else {}
    with pytest.raises(DataError, match=sentence):
        check_data(config(model=model, **options), Data(modalities=(modality,), labelled=True))
    check_data(config(model='/some/directory'), Data(modalities=(modality,), labelled=True))


def test_a_model_of_texts_and_images_reads_both():
    data = Data('pairs', ('text', 'image'))
    check_data(config('CLIPLoss', 'ViT-B-32::openai'), data)
    with pytest.raises(DataError, match='reads texts and images, and .* holds pairs of meshes'):
        check_data(config('CLIPLoss', 'ViT-B-32::openai'), Data('pairs', ('mesh', 'mesh')))
