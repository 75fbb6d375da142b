"""WandBLogger and MLFlowLogger, with real runs on this machine."""

from __future__ import annotations

import logging
import time

import pytest

from finetuner import settings
from finetuner.callback import MLFlowLogger, TrainingCheckpoint, WandBLogger
from training.callbacks import Callback
from training.callbacks.logger import Logger
from training.errors import CallbackError


class Memory(Logger):
    """A tracker that is a list."""

    def __init__(self, fails=False):
        super().__init__()
        self.sent, self.fails, self.closed = [], fails, None

    def open(self, state, config):
        self.config, self.run_id = config, self.run_id or 'run-1'

    def send(self, figures, step):
        if self.fails:
            raise ConnectionError('the tracker is away')
        self.sent.append((step, figures))

    def close(self, failed):
        self.closed = failed


class Figures(Callback):
    def on_epoch_end(self, state):
        state.metrics['my_figure'] = float(state.epoch)


def test_new_figures_are_sent_at_their_step(make_training):
    tracker = Memory()
    make_training([tracker, Figures()], val_losses=[3.0, 2.0, 2.0]).run()
    assert {name for _, part in tracker.sent for name in part} == {
        'train/loss', 'val/loss', 'learning_rate', 'metrics/my_figure',
    }  # fmt: skip
    sent = [(step, value) for step, figures in tracker.sent for name, value in figures.items() if name == 'val/loss']
    assert sent == [(6, 3.0), (12, 2.0)]  # what did not change is not sent again
    sent = [(step, value) for step, part in tracker.sent for name, value in part.items() if name == 'metrics/my_figure']
    assert sent == [(6, 1), (12, 2), (18, 3)]
    assert tracker.config['learning_rate'] == 0.05 and tracker.closed is False


def test_a_failed_training_is_a_failed_run(make_training):
    class Faulty(Callback):
        def on_epoch_end(self, state):
            raise ValueError('broken')

    tracker = Memory()
    with pytest.raises(CallbackError):
        make_training([tracker, Faulty()]).run()
    assert tracker.closed is True


def test_a_tracker_that_goes_away_ends_no_training(make_training, caplog):
    training = make_training([Memory(fails=True)])
    training.run()
    assert training.state.epoch == 3
    assert 'Memory: the figures of step' in caplog.text


def test_a_resumed_training_goes_on_in_the_same_run(make_training):
    first = Memory()
    first.run_id = 'the-first'
    make_training([first, TrainingCheckpoint()], epochs=1).run()
    second = Memory()
    make_training([second, TrainingCheckpoint()], epochs=1, resume=True).run()
    assert second.run_id == 'the-first'


def test_mlflow(make_training):
    from mlflow import MlflowClient

    training = make_training([MLFlowLogger('tests'), Figures()], run_name='brisk-heron', epochs=2)
    training.run()
    client = MlflowClient(f'sqlite:///{settings.home() / "mlflow.db"}')
    (run,) = client.search_runs([client.get_experiment_by_name('tests').experiment_id])
    assert run.info.run_name == 'brisk-heron' and run.info.status == 'FINISHED'
    assert run.data.params['learning_rate'] == '0.05' and run.data.params['loss'] == 'TripletMarginLoss'
    history = client.get_metric_history(run.info.run_id, 'metrics/my_figure')
    assert [(metric.step, metric.value) for metric in history] == [(6, 1.0), (12, 2.0)]
    assert run.data.metrics['train/loss'] == pytest.approx(training.state.metrics['train_loss'])
    assert run.data.metrics['val/loss'] == pytest.approx(training.state.metrics['val_loss'])


@pytest.mark.parametrize(
    ('given', 'environment', 'expected'), [('a', 'b', 'a'), (None, 'b', 'b'), (None, None, 'sqlite:///.*/mlflow.db')]
)
def test_where_mlflow_is(make_training, monkeypatch, given, environment, expected):
    import mlflow

    def client(uri):
        raise ConnectionError(f'asked <{uri}>')

    monkeypatch.setattr(mlflow, 'MlflowClient', client)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    if environment:
        monkeypatch.setenv('MLFLOW_TRACKING_URI', environment)
    with pytest.raises(
        CallbackError, match=f'MLFlowLogger failed in on_fit_begin: ConnectionError: asked <{expected}>'
    ):
        make_training([MLFlowLogger('tests', given)]).run()


@pytest.mark.parametrize('arguments', [{'mode': 'offline'}, {}])
def test_wandb_keeps_figures_here(make_training, monkeypatch, caplog, arguments, tmp_path):
    for name in ('WANDB_API_KEY', 'WANDB_MODE'):
        monkeypatch.delenv(name, raising=False)
    for name in ('WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_DATA_DIR'):
        monkeypatch.setenv(name, str(tmp_path / 'wandb'))
    monkeypatch.setenv('NETRC', str(tmp_path / 'no-netrc'))
    caplog.set_level(logging.INFO)
    token = 's3cr3t' * 7 if arguments else None
    training = make_training([WandBLogger(token, {'project': 'tests', **arguments}), Figures()], epochs=2)
    training.run()
    (folder,) = (training.state.directory / 'wandb').glob('offline-run-*')
    (file,) = folder.glob('*.wandb')
    names = [b'train/loss', b'val/loss', b'learning_rate', b'metrics/my_figure', b'TripletMarginLoss']
    until = time.monotonic() + 20
    while (missing := [name for name in names if name not in file.read_bytes()]) and time.monotonic() < until:
        time.sleep(0.1)  # another process writes it
    assert not missing
    assert ('There is no API key of W&B' in caplog.text) == (token is None)
    everything = caplog.text.encode() + b''.join(path.read_bytes() for path in tmp_path.rglob('*') if path.is_file())
    assert b's3cr3t' not in everything
