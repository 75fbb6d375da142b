"""Experiments: groups of runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from executors.api.names import ExperimentName
from executors.api.request import Body, Call, Paged, Paging, make_router
from executors.openapi import CONFLICT, NOT_FOUND
from executors.patterns import NAME

router = make_router('experiments')

MAX_DESCRIPTION = 10_000


class NewExperiment(Body):
    name: str = Field(default='default', pattern=NAME, examples=['support'])
    description: str = Field(default='', max_length=MAX_DESCRIPTION)


class Experiment(BaseModel):
    """`status` is always ACTIVE; `runs` is how many there are."""

    name: str
    status: str
    description: str
    created_at: str
    runs: int


@router.post('/experiments', operation_id='create_experiment')
async def create(body: NewExperiment, call: Call) -> Experiment:
    """The experiment of this name, made if there is none."""
    return Experiment(**await call.tags('/create_experiment', **body.model_dump()))


@router.get('/experiments', operation_id='list_experiments')
async def list_all(paging: Annotated[Paging, Query()], call: Call) -> Paged[Experiment]:
    return Paged[Experiment](**await call.tags('/experiments', **paging.model_dump()))


@router.delete('/experiments', operation_id='delete_experiments', responses={409: {'description': CONFLICT}})
async def delete_all(call: Call) -> list[Experiment]:
    """Delete all experiments with all their runs, and return what they were. Nothing, if a run is at work."""
    return [Experiment(**item) for item in (await call.tags('/delete_experiments'))['items']]


@router.get('/experiments/{name}', operation_id='get_experiment', responses={404: {'description': NOT_FOUND}})
async def get(name: ExperimentName, call: Call) -> Experiment:
    return Experiment(**await call.tags('/experiment', name=name))


@router.delete(
    '/experiments/{name}',
    operation_id='delete_experiment',
    responses={404: {'description': NOT_FOUND}, 409: {'description': CONFLICT}},
)
async def delete(name: ExperimentName, call: Call) -> Experiment:
    """Delete an experiment with all its runs, and return what it was."""
    return Experiment(**(await call.tags('/delete_experiments', names=[name]))['items'][0])
