"""Whether a data set is what a run can use, by what is known of it before it is read."""

from __future__ import annotations

from typing import Literal, Protocol

from finetuner.excepts import DataError
from finetuner.models import task_of
from training.config import FitConfig

Role = Literal['train', 'eval', 'query', 'index']

NEEDED = {
    'labelled': 'labelled items, or pairs',
    'pairs': 'pairs of an anchor and a positive',
    'scored pairs': 'scored pairs',
    'triplets': 'triplets of a query, a positive and a negative',
}
MODALITIES = {
    'text-to-text': ('text',),
    'image-to-image': ('image',),
    'text-to-image': ('text', 'image'),
    'mesh-to-mesh': ('mesh',),
    'any': ('tensor',),
}


class Facts(Protocol):
    """What a data set tells of itself, see `registry.shards.ShardInfo`."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def scored(self) -> bool: ...


def check_data(config: FitConfig, data: Facts, role: Role = 'train') -> None:
    """Refuse a data set that the loss cannot learn from, or that the model cannot read.

    :param role: what the data set is for; a query or an index is not learned from.
    :raises DataError: the message says what is needed, and what the data set holds.
    """
    if role in ('train', 'eval'):
        if not fits(config.shape, data):
            raise DataError(f'{config.loss} learns from {NEEDED[config.shape]}, {_holds(data)}{_hint(config, data)}')
    elif not (data.labelled or data.shape == 'pairs'):
        raise DataError(f'{role}_data is to tell which matches are right by labels or as pairs, {_holds(data)}')
    readable = MODALITIES.get(task_of(config.model) or '', data.modalities)
    if not set(data.modalities) <= set(readable):
        raise DataError(f'the model {config.model} reads {_plural(readable)}, {_holds(data)}')


def fits(shape: str, data: Facts) -> bool:
    """Whether a loss of this shape can learn from the data."""
    # pairs without labels are grouped, and those with scores may as well not belong together
    are_positives = data.shape == 'pairs' and (data.labelled or not data.scored)
    return {
        'labelled': (data.shape == 'items' and data.labelled) or are_positives,
        'pairs': are_positives,
        'scored pairs': data.shape == 'pairs' and data.scored,
        'triplets': data.shape == 'triplets',
    }[shape]


def _holds(data: Facts) -> str:
    """Such as `and the data set 'x' holds scored pairs of a text and an image`."""
    marks = [mark for mark, there in (('labelled', data.labelled), ('scored', data.scored)) if there]
    if data.shape == 'items':
        return f'and the data set {data.name!r} holds {" ".join(marks) or "unlabelled"} {_plural(data.modalities)}'
    several = len(set(data.modalities)) > 1
    of = ' and '.join(f'{"an" if kind == "image" else "a"} {kind}' for kind in data.modalities)
    made = of if several else _plural(data.modalities[:1])
    return f'and the data set {data.name!r} holds {" ".join([*marks, data.shape])} of {made}'


def _plural(modalities: tuple[str, ...]) -> str:
    return ' and '.join('meshes' if modality == 'mesh' else f'{modality}s' for modality in modalities) or 'documents'


def _hint(config: FitConfig, data: Facts) -> str:
    if data.shape == 'items' and not data.labelled and config.shape == 'labelled':
        return ": each needs tags['finetuner_label']"
    if data.shape == 'pairs' and config.shape in ('labelled', 'pairs'):
        return ': use CosineSimilarityLoss, or leave the scores out if all pairs belong together'
    return ''
