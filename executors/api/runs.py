"""Runs: trainings, from their submission to their results."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.exceptions import HTTPException
from pydantic import BaseModel, Field, field_validator

from executors.api.experiments import MAX_DESCRIPTION
from executors.api.names import ExperimentName, RunName
from executors.api.request import Body, Call, Paged, Paging, make_router
from executors.api.run_config import RunConfig, from_arguments, to_arguments
from executors.openapi import CONFLICT, NOT_FOUND
from executors.patterns import DEVICE, NAME

router = make_router('runs')
MISSING: dict[int | str, dict[str, Any]] = {404: {'description': NOT_FOUND}}
CONFLICTING: dict[int | str, dict[str, Any]] = {**MISSING, 409: {'description': CONFLICT}}
# what `/fit` takes beside the arguments of the training
REQUESTED = ('priority', 'cpus', 'gpus', 'memory_limit', 'max_retries')


class NewRun(Body):
    """A run to be made.

    Jina's Finetuner sends `finetuner_version`; its `cpus` and `gpus` were for its cloud and ask for nothing here.
    """

    name: str | None = Field(default=None, pattern=NAME, description='Default two random words.', examples=['first'])
    config: RunConfig
    task: str = Field(default='training', max_length=100, description='training')
    description: str = Field(default='', max_length=MAX_DESCRIPTION)
    device: str = Field(default='gpu', pattern=DEVICE)
    finetuner_version: str | None = Field(default=None, max_length=100)
    cpus: float | None = Field(default=None, ge=0, le=4096, description='Cores; 0 is as none given.')
    gpus: int | None = Field(default=None, ge=0, le=64)
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    memory_limit: int | None = Field(default=None, ge=1 << 26, le=1 << 50, description='Bytes.')
    max_retries: int | None = Field(default=None, ge=0, le=100)

    @field_validator('task')
    @classmethod
    def _is_training(cls, task: str) -> str:
        if task == 'generation':
            raise ValueError('this service trains, it does not generate data yet: the task is "training"')
        if task != 'training':
            raise ValueError('it is unknown: the task is "training"')
        return task


class Run(BaseModel):
    """A run as it stands.

    `status` is CREATED, STARTED, FINISHED, FAILED or CANCELLED, `details` a sentence about it. `artifact_id` is the id
    that the artifact has, or will have.
    """

    id: str | None = None
    name: str
    experiment_name: str
    status: str
    details: str
    description: str
    task: str = 'training'
    device: str
    config: dict[str, Any]
    artifact_id: str
    created_at: str
    progress: dict[str, Any]
    priority: int | None = None
    attempts: int | None = None
    queue_position: int | None = None


class RunStatus(BaseModel):
    status: str
    details: str
    progress: dict[str, Any]


def read_run(tags: dict[str, Any]) -> Run:
    """A run of an endpoint's answer."""
    stored = tags['config']
    names = {'experiment_name': tags['experiment_name'], 'run_name': tags['name']}
    device = 'cpu' if stored.get('device') == 'cpu' else 'gpu'
    return Run(**{**tags, 'config': {**from_arguments(stored), **names}, 'device': device})


def _arguments(experiment: str, body: NewRun) -> dict[str, Any]:
    config = body.config
    for place, inside, outside in (
        ('experiment_name', config.experiment_name, experiment),
        ('run_name', config.run_name, body.name or config.run_name),
    ):
        if inside is not None and inside != outside:
            raise HTTPException(422, f'config.{place} is {inside!r}, but the run is to be {outside!r}')
    device = {'gpu': 'cuda'}.get(body.device, body.device)
    arguments = to_arguments(config) | {
        'experiment_name': experiment,
        'run_name': body.name or config.run_name,
        'description': body.description or None,
        'device': device,
    }
    if body.finetuner_version is None:
        arguments |= {name: getattr(body, name) for name in REQUESTED} | {'cpus': body.cpus or None}
    return arguments


@router.post('/experiments/{experiment}/runs', operation_id='create_run')
async def create(experiment: ExperimentName, body: NewRun, call: Call) -> Run:
    """Submit a run. The same name with the same configuration is the same run."""
    return read_run(await call.tags('/fit', missing=400, **_arguments(experiment, body)))


@router.get('/experiments/{experiment}/runs', operation_id='list_runs', responses=MISSING)
async def list_some(experiment: ExperimentName, paging: Annotated[Paging, Query()], call: Call) -> Paged[Run]:
    return _page(await call.tags('/runs', experiment_name=experiment, **paging.model_dump()))


@router.delete('/experiments/{experiment}/runs', operation_id='delete_runs', responses=CONFLICTING)
async def delete_some(experiment: ExperimentName, call: Call) -> list[Run]:
    """Delete all runs of an experiment, and return what they were. None of them, if one is at work."""
    return _all(await call.tags('/delete_runs', experiment_name=experiment))


@router.get('/runs', operation_id='list_all_runs')
@router.get('/runs/runs', operation_id='list_all_runs_of_jina')
async def list_all(paging: Annotated[Paging, Query()], call: Call) -> Paged[Run]:
    """The runs of all experiments. Jina's Finetuner asks at `/runs/runs`."""
    return _page(await call.tags('/runs', **paging.model_dump()))


@router.delete('/runs', operation_id='delete_all_runs', responses={409: {'description': CONFLICT}})
async def delete_all(call: Call) -> list[Run]:
    """Delete all runs of all experiments, and return what they were. None of them, if one is at work."""
    return _all(await call.tags('/delete_runs'))


@router.get('/experiments/{experiment}/runs/{run}', operation_id='get_run', responses=MISSING)
async def get(experiment: ExperimentName, run: RunName, call: Call) -> Run:
    return read_run(await call.tags('/status', experiment_name=experiment, run_name=run))


@router.delete('/experiments/{experiment}/runs/{run}', operation_id='delete_run', responses=CONFLICTING)
async def delete(experiment: ExperimentName, run: RunName, call: Call) -> Run:
    """Delete a run with its artifact, log and checkpoints, and return what it was."""
    return read_run(await call.tags('/delete_run', experiment_name=experiment, run_name=run))


@router.get('/experiments/{experiment}/runs/{run}/status', operation_id='get_run_status', responses=MISSING)
async def status(experiment: ExperimentName, run: RunName, call: Call) -> RunStatus:
    return RunStatus(**await call.tags('/status', experiment_name=experiment, run_name=run))


@router.post('/experiments/{experiment}/runs/{run}/cancel', operation_id='cancel_run', responses=MISSING)
async def cancel(experiment: ExperimentName, run: RunName, call: Call) -> Run:
    """End a run that waits or is at work. One that has ended stays as it is."""
    return read_run(await call.tags('/cancel', experiment_name=experiment, run_name=run))


@router.post('/experiments/{experiment}/runs/{run}/resume', operation_id='resume_run', responses=CONFLICTING)
async def resume(experiment: ExperimentName, run: RunName, call: Call) -> Run:
    """Queue a FAILED or CANCELLED run again. It goes on from its last checkpoint, if it left any."""
    return read_run(await call.tags('/resume', experiment_name=experiment, run_name=run))


@router.get('/experiments/{experiment}/runs/{run}/metrics', operation_id='get_run_metrics', responses=CONFLICTING)
async def metrics(experiment: ExperimentName, run: RunName, call: Call) -> dict[str, Any]:
    """Retrieval metrics, `before` and `after` the training."""
    return await call.tags('/metrics', experiment_name=experiment, run_name=run)


@router.get('/experiments/{experiment}/runs/{run}/examples', operation_id='get_run_examples', responses=CONFLICTING)
async def examples(experiment: ExperimentName, run: RunName, call: Call) -> dict[str, Any]:
    """Some queries with their matches, `before` and `after` the training."""
    return await call.tags('/examples', experiment_name=experiment, run_name=run)


def _page(tags: dict[str, Any]) -> Paged[Run]:
    return Paged[Run](**{**tags, 'items': [read_run(item) for item in tags['items']]})


def _all(tags: dict[str, Any]) -> list[Run]:
    return [read_run(item) for item in tags['items']]
