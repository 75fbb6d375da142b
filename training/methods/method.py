"""What a method says, checked in full when its file is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetuner.excepts import ParameterError
from registry.click_records import ClickSession
from registry.names import check_alias
from training.clicks.feedback import Feedback, read_feedback
from training.clicks.options import ClickOptions
from training.config import FitConfig
from training.losses import objective_shape
from training.methods.item_loading import LoadedItems, load_items
from training.methods.items import ItemSource
from training.unions import either

# arguments of a fit that do not belong to a method: the clicks, and the task that uses it, decide them
NOT_OF_A_METHOD = frozenset(
    {'model', 'model_artifact', 'train_data', 'eval_data', 'val_split', 'run_name', 'experiment_name', 'description'}
    | {'callbacks', 'csv_options', 'public', 'loss', 'loss_options', 'model_options'}
)
METRICS = ('ndcg_at_10', 'reciprocal_rank', 'recall_at_10')

Scalar = bool | int | float | str | None


class Range(BaseModel):
    """Numbers from `low` to `high`.

    :param log: as many between 1e-6 and 1e-5 as between 1e-5 and 1e-4.
    """

    model_config = ConfigDict(extra='forbid')

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = False

    @model_validator(mode='after')
    def _order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f'low is {self.low:g}, and high {self.high:g}: low must be the less')
        if self.log and self.low <= 0:
            raise ValueError(f'low is {self.low:g}: with log, it must be above 0')
        return self


Values = Annotated[
    Range | Annotated[list[Scalar], Field(min_length=1)],
    either('give a list of values to choose of, or a range with its low and high', Range, is_sent=False),
]
Space = dict[str, Values]


class Search(BaseModel):
    """Which values of the arguments of a fit are tried.

    :param space: by argument, values to choose of or a range. An option of it is written `loss_options.margin`, one of
        an encoder `optimizer_options.clip-text.lr`.
    :param evaluations: how many trainings are tried where no earlier iteration tells what is good.
    :param parallel: how many of them at the same time, as far as the queue gives each a worker. What is tried, and
        which one is best, does not depend on how many it gives.
    """

    model_config = ConfigDict(extra='forbid')

    space: Space = Field(default_factory=dict)
    evaluations: int = Field(default=2, ge=1, le=1000)
    parallel: int = Field(default=1, ge=1, le=100)


class Method(BaseModel):
    """A way to fine-tune a model by clicks.

    A subclass may have fields of its own, which its file sets, and may override :meth:`feedback`, :meth:`load_items`
    and :meth:`config`.

    :param name: what a task calls it.
    :param model: a short name, a hub id or a model directory.
    :param items: where the contents of the items come from.
    :param clicks: how they become training data.
    :param metric: of held-out sessions, by which models are compared.
    :param fit: further arguments of `finetuner.fit`.
    :param alias: names the best model, 'name@stage'; default the method's own name, with '-' for spaces, and
        '@production'.
    """

    model_config = ConfigDict(extra='forbid', protected_namespaces=())

    name: str = Field(pattern=r'^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$')
    version: str = Field(default='1.0.0', max_length=50)
    description: str = ''
    model: str = Field(min_length=1)
    model_options: dict[str, Any] | None = None
    items: ItemSource
    clicks: ClickOptions = Field(default_factory=ClickOptions)
    loss: str = 'CosineProbMarginRankingLoss'
    loss_options: dict[str, Any] | None = None
    metric: str = 'ndcg_at_10'
    fit: dict[str, Any] = Field(default_factory=dict)
    search: Search = Field(default_factory=Search)
    alias: str | None = None

    @model_validator(mode='after')
    def _usable(self) -> Method:
        if self.metric not in METRICS:
            raise ValueError(f'metric is {self.metric!r}: give {" or ".join(map(repr, METRICS))}')
        for argument in self.fit:
            _check_argument('fit', argument)
        for path in self.search.space:
            _check_argument('search.space', path)
        objective_shape(self.loss, self.loss_options)
        check_alias(self.promoted_alias)
        for chosen in self._corners():
            self.config(chosen, train_data='clicks')
        return self

    def config(self, chosen: Mapping[str, Any], train_data: str, **arguments: Any) -> FitConfig:
        """What a training is told.

        :param chosen: values of the search space, by argument; of those that are missing, the method's own or the
            default counts.
        :param arguments: others of `FitConfig`, such as `model_artifact` and `run_name`.
        :raises ParameterError: the values do not go together.
        """
        values: dict[str, Any] = {
            'model': self.model,
            'model_options': self.model_options,
            'loss': self.loss,
            'loss_options': self.loss_options,
            **self.fit,
            **arguments,
            'train_data': train_data,
        }
        for path, value in chosen.items():
            if path not in self.search.space:
                raise ParameterError(f'{path!r} is not in the search space of the method {self.name!r}')
            values = _with(values, path.split('.'), value)
        return FitConfig.from_arguments(**values)

    def feedback(self, sessions: Iterable[ClickSession]) -> list[Feedback]:
        """What sessions say of the results that they show."""
        return read_feedback(sessions, self.clicks.events, self.clicks.clickless_is_irrelevant)

    def load_items(self, sessions: Iterable[ClickSession], directory: Path) -> LoadedItems:
        """The contents of the items that sessions show.

        :param directory: for files of them; it is kept while the task is worked on.
        :raises DataError: none can be read.
        """
        return load_items(self.items, sessions, directory)

    @property
    def promoted_alias(self) -> str:
        """What names the best model."""
        return self.alias or f'{self.name.replace(" ", "-")}@production'

    @property
    def digest(self) -> str:
        """Short, of all that the method says: another one if its file has changed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def _corners(self) -> Iterator[dict[str, Any]]:
        """A choice in the middle of nowhere, and one for every value at an end of the space."""
        ends = {path: _ends(values) for path, values in self.search.space.items()}
        first = {path: values[0] for path, values in ends.items()}
        yield first
        for path, values in ends.items():
            yield from ({**first, path: value} for value in values[1:])


def _with(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy in which what is at the path is this value; the mappings on the way are copied, or made."""
    name, *inner = path
    if not inner:
        return {**values, name: value}
    options = values.get(name) or {}
    if not isinstance(options, Mapping):
        raise ValueError(f'search.space: {name} is {options!r}, which has no option {".".join(inner)!r}')
    return {**values, name: _with(options, inner, value)}


def _ends(values: Range | list[Scalar]) -> list[Scalar]:
    return [values.low, values.high] if isinstance(values, Range) else values


def _check_argument(place: str, path: str) -> None:
    argument = path.partition('.')[0]
    is_known = argument in FitConfig.model_fields
    nested = place == 'search.space' and argument in ('loss_options', 'model_options') and '.' in path
    if not is_known:
        raise ValueError(f'{place}: {path!r} is no argument of a fit')
    if argument in NOT_OF_A_METHOD and not nested:
        raise ValueError(f'{place}: {path!r} is not for a method to say here')
