"""The whole state of a training as files: safetensors for tensors, JSON for the rest."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.callbacks.base import Callback
    from training.config import FitConfig
    from training.data import Examples
    from training.state import TrainingState

FORMAT = 1
TENSORS, STATE = 'tensors.safetensors', 'state.json'
OPEN = '-open'  # ends the name of one whose epoch has not ended
# arguments that make no difference to the weights; the content of the data is compared instead of its name
FREE = frozenset(
    {
        'train_data', 'eval_data', 'run_name', 'experiment_name', 'description', 'public', 'num_workers', 'time_limit',
        'to_onnx', 'onnx_precision', 'onnx_min_cosine', 'csv_options',
    }
)  # fmt: skip
POSITION = ('epoch', 'step', 'global_step', 'steps_per_epoch', 'loss_sum', 'metrics', 'history')


def save_checkpoint(
    state: TrainingState,
    callbacks: Sequence[Callback],
    directory: Path,
    *,
    keep: int = 1,
    epoch_ended: bool = False,
) -> Path:
    """Write what is needed to go on, as a new folder in `directory`, which appears complete or not at all.

    That is weights that are trained and buffers, optimizers, schedulers, the scale of fp16 gradients, random numbers,
    the position, the callbacks, and what the training depends on.

    :param keep: how many checkpoints there are in the end, the latest.
    :param epoch_ended: validation and the callbacks have seen the end of `state.epoch`. Otherwise a training that goes
        on from the last batch of an epoch ends it first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f'task.{name}': tensor for name, tensor in weights(state.task).items()}
    record = {
        'format': FORMAT,
        'config': _config(state.config),
        'identity': _identity(state),
        'position': {name: getattr(state, name) for name in POSITION}
        | {'loss_sum': float(state.loss_sum), 'history': _history(state, epoch_ended)},
        'optimizers': _pack([part.state_dict() for part in state.optimizers], tensors, 'optimizers'),
        'schedulers': _pack([part.state_dict() for part in state.schedulers], tensors, 'schedulers'),
        'scaler': _pack(None if state.scaler is None else state.scaler.state_dict(), tensors, 'scaler'),
        'random': _pack(_random_state(), tensors, 'random'),
        'callbacks': _pack(_callback_states(callbacks), tensors, 'callbacks'),
    }
    aside = Path(tempfile.mkdtemp(prefix='.', dir=directory))
    try:
        write_tensors(aside / TENSORS, tensors)
        with (aside / STATE).open('w') as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o755)
        target = directory / f'step-{state.global_step:09d}{"" if epoch_ended else OPEN}'
        if target.exists():  # the same step again, after a training went on from an earlier one
            target.rename(Path(tempfile.mkdtemp(prefix='.', dir=directory)) / 'old')
        aside.rename(target)
    finally:
        for leftover in directory.glob('.*'):
            shutil.rmtree(leftover, ignore_errors=True)
    if epoch_ended:
        shutil.rmtree(directory / f'{target.name}{OPEN}', ignore_errors=True)
    for old in _checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def find_checkpoint(directory: Path) -> Path | None:
    """The latest checkpoint in the folder."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def check_config(path: Path, config: FitConfig) -> dict[str, Any]:
    """What the training of a checkpoint depends on beside its config.

    :raises ValueError: the checkpoint is damaged, or of another config.
    """
    record = read_record(path)
    _check_same('config', record['config'], _config(config))
    return record['identity']


def load_checkpoint(path: Path, state: TrainingState, callbacks: Sequence[Callback]) -> None:
    """Bring everything to where it was when the checkpoint was written.

    :param state: with the task, the optimizers and the schedulers that the same config makes.
    :raises ValueError: the checkpoint is damaged, or of another config or other data; the message says which.
    """
    record = read_record(path)
    _check_same('config', record['config'], _config(state.config))
    _check_same('training', record['identity'], _identity(state))
    tensors = read_tensors(path / TENSORS)
    restore_weights(state.task, {name[5:]: tensor for name, tensor in tensors.items() if name.startswith('task.')})
    for optimizer, values in zip(state.optimizers, _unpack(record['optimizers'], tensors), strict=True):
        optimizer.load_state_dict(values)
    for scheduler, values in zip(state.schedulers, _unpack(record['schedulers'], tensors), strict=True):
        scheduler.load_state_dict(values)
    if state.scaler is not None:
        state.scaler.load_state_dict(_unpack(record['scaler'], tensors))
    for name in POSITION:
        setattr(state, name, record['position'][name])
    states = _unpack(record['callbacks'], tensors)
    for name, callback in _named(callbacks).items():
        if states.get(name):
            callback.load_state_dict(states[name])
    _restore_random_state(_unpack(record['random'], tensors))


def read_record(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside tensors; `identity` is what it depends on beside its `config`.

    :raises ValueError: it is damaged.
    """
    try:
        record = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'the checkpoint {path} is damaged: {error}') from error
    if not isinstance(record, dict) or record.get('format') != FORMAT:
        raise ValueError(f'the checkpoint {path} was written by another version')
    return record


def data_identity(examples: Examples) -> str:
    """A digest of the content of examples, their labels and scores, in their order."""
    digest = hashlib.sha256()
    for store in {id(column.store): column.store for column in examples.columns}.values():
        digest.update(np.ascontiguousarray(store.keys).data)
    for values in (examples.labels, examples.scores):
        if values is not None:
            digest.update(np.ascontiguousarray(values).data)
    digest.update(json.dumps(examples.classes).encode())
    return digest.hexdigest()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """What a training changes: parameters that are trained, and buffers, by name, each once. Nothing is copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        trained = not isinstance(tensor, nn.Parameter) or tensor.requires_grad
        if isinstance(tensor, Tensor) and trained and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


@torch.no_grad()
def restore_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors back into what :func:`weights` took them from.

    :raises ValueError: they are of another module.
    """
    mine = weights(module)
    if differing := sorted(mine.keys() ^ tensors.keys()):
        raise ValueError(f'these weights are of another model or training: {", ".join(differing[:3])} do not match')
    for name, tensor in mine.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(f'{name} has the shape {list(tensors[name].shape)}, not {list(tensor.shape)}')
        tensor.copy_(tensors[name])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, which appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storages: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # the format has no tensors that share memory
        plain[name] = value.clone() if storage in storages or value.untyped_storage().nbytes() > value.nbytes else value
        storages.add(storage)
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        save_file(plain, aside, metadata)
        with aside.open('rb') as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """:raises ValueError: the file is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path} is damaged: {error}') from error


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob('step-*'), key=lambda path: order(path.name))


def order(name: str) -> tuple[str, bool]:
    """What sorts checkpoints by their names, the latest last."""
    return name.removesuffix(OPEN), OPEN not in name


def _config(config: FitConfig) -> dict[str, Any]:
    settings = config.model_dump(mode='json')
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in FREE}))


def _history(state: TrainingState, epoch_ended: bool) -> list[dict[str, float]]:
    """That of the epoch that ends is added to the state only when all callbacks have seen it."""
    return [*state.history, {'epoch': float(state.epoch), **state.metrics}] if epoch_ended else state.history


def _identity(state: TrainingState) -> dict[str, Any]:
    """What the weights depend on beside the config."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    known = {'steps_per_epoch': state.steps_per_epoch, 'processes': processes} | state.identity
    if 'frozen weights' not in known:  # they are not in the checkpoint, and must be the same
        state.identity['frozen weights'] = known['frozen weights'] = _frozen_digest(state.task)
    return known


def _frozen_digest(module: nn.Module) -> str | None:
    frozen = [tensor.detach() for tensor in module.parameters() if not tensor.requires_grad]
    digest = hashlib.sha256()
    for tensor in frozen:
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if frozen else None


def _check_same(what: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    differing = sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name))
    if differing:
        shown = ', '.join(
            f'{name} was {_short(saved.get(name))} and is {_short(current.get(name))}' for name in differing
        )
        raise ValueError(f'the checkpoint is of another {what}: {shown}')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:80]}…'


def _named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """By class, numbered where there are several of one."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        number = sum(type(other) is type(callback) for other in named.values()) + 1
        named[callback.name if number == 1 else f'{callback.name} {number}'] = callback
    return named


def _callback_states(callbacks: Sequence[Callback]) -> dict[str, Any]:
    return {name: values for name, callback in _named(callbacks).items() if (values := callback.state_dict())}


def _random_state() -> dict[str, Any]:
    return {
        'python': random.getstate(),
        'numpy': np.random.get_state(legacy=False),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _restore_random_state(values: dict[str, Any]) -> None:
    random.setstate(values['python'])
    np.random.set_state(values['numpy'])
    torch.set_rng_state(values['torch'])
    if values['cuda'] and torch.cuda.is_available() and len(values['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(values['cuda'])


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The value as JSON; its tensors go to `tensors`, under names that begin with `name`."""
    if isinstance(value, Tensor | np.ndarray):
        key = f'{name}.{len(tensors)}'
        tensors[key] = value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
        return {'type': 'tensor' if isinstance(value, Tensor) else 'array', 'value': key}
    if isinstance(value, Mapping):
        items = [[_pack(part, tensors, name) for part in item] for item in value.items()]
        return {'type': 'dict', 'value': items}
    if isinstance(value, list | tuple):
        return {'type': type(value).__name__, 'value': [_pack(part, tensors, name) for part in value]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {'type': 'float', 'value': str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f'{name} holds a {type(value).__name__}, which a checkpoint cannot')


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    kind, value = value['type'], value['value']
    if kind in ('tensor', 'array'):
        return tensors[value] if kind == 'tensor' else tensors[value].numpy()
    if kind == 'float':
        return float(value)
    if kind == 'dict':
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value}
    parts = [_unpack(part, tensors) for part in value]
    return tuple(parts) if kind == 'tuple' else parts
