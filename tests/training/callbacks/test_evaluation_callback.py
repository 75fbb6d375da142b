"""EvaluationCallback: when it measures, and what comes of it."""

from __future__ import annotations

import logging

import pytest
import torch

from finetuner.callback import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    TrainingCheckpoint,
    WiSEFTCallback,
)
from training.callbacks import Callback
from training.callbacks.options import EvaluationOptions
from training.embed import FeatureEmbedder
from training.evaluator import Corpora, Evaluator
from training.progress import Reporter

from .conftest import make_examples


@pytest.fixture
def make_evaluators(tmp_path):
    """Of labelled items that search each other."""
    examples = make_examples(tmp_path / 'evaluated', 5, 40, noise=2)

    def make(*options):
        def evaluators(task):
            def embedders(data):
                return {'model': FeatureEmbedder(task.encoders['model'], data.columns[0].store.features)}

            corpora = Corpora(dict(task.encoders.items()), embedders, tmp_path, torch.device('cpu'), Reporter())
            return [Evaluator(EvaluationOptions(query_data='q', **o), examples, examples, corpora) for o in options]

        return evaluators

    return make


class Watch(Callback):
    """Keeps what it sees of a metric."""

    def __init__(self):
        self.seen = []

    def on_batch_end(self, state):
        self.seen.append((state.global_step, state.metrics.get('recall_at_k')))

    def on_epoch_end(self, state):
        self.on_batch_end(state)


def test_metrics_before_and_after(make_training, make_evaluators, caplog):
    caplog.set_level(logging.INFO)
    training = make_training(evaluators=make_evaluators({'gather_examples': True}), epochs=8)
    training.run()
    metrics, examples = training.callbacks.metrics, training.callbacks.examples
    assert metrics['after']['average_precision'] > metrics['before']['average_precision']
    assert training.state.metrics['average_precision'] == metrics['after']['average_precision']
    assert set(examples) == {'before', 'after', 'relevant before', 'relevant after'}
    assert examples['after'].keys() == examples['relevant after'].keys()
    assert "Metric: 'average_precision' before fine-tuning: " in caplog.text
    assert {'Evaluating before', 'Evaluating after'} <= set(training.state.report.seconds)
    assert 'Evaluating' not in training.state.report.seconds  # nobody asked for it on the way


def test_nothing_is_kept_where_nothing_is_evaluated(make_training):
    training = make_training(epochs=1)
    training.run()
    assert training.callbacks.metrics == training.callbacks.examples == {'before': {}, 'after': {}}


def test_figures_are_there_at_the_end_of_an_epoch_for_those_who_read_them(make_training, make_evaluators):
    watch = Watch()
    training = make_training([watch], evaluators=make_evaluators({}))
    training.run()
    by_epoch = [dict(watch.seen[7 * epoch : 7 * epoch + 7]) for epoch in range(3)]
    assert [len(set(figures.values())) for figures in by_epoch] == [2, 2, 2]  # new at the end of every epoch
    last = [figures[6 * epoch] for epoch, figures in enumerate(by_epoch, 1)]
    assert [entry['recall_at_k'] for entry in training.state.history] == last


def test_steps_per_interval(make_training, make_evaluators, caplog):
    caplog.set_level(logging.INFO)
    training = make_training(evaluators=make_evaluators({'steps_per_interval': 4}))
    training.run()
    lines = [record.message for record in caplog.records if record.message.startswith('Epoch')]
    assert [line.split(':')[0] for line in lines if 'recall_at_k' in line] == [
        'Epoch 1, step 4 of 6', 'Epoch 2, step 2 of 6', 'Epoch 2, step 6 of 6', 'Epoch 3, step 4 of 6',
    ]  # fmt: skip


def test_steps_per_interval_with_several_batches_to_a_step_and_after_a_resume(make_training, make_evaluators):
    class Stop(Watch):
        after = 9

        def on_batch_end(self, state):
            super().on_batch_end(state)
            state.stop = state.global_step == self.after

    arguments = {'gradient_accumulation_steps': 3, 'evaluators': make_evaluators({'steps_per_interval': 4})}
    whole = make_training([TrainingCheckpoint(), watch := Watch()], 'whole', **arguments)
    whole.run()
    first = make_training([TrainingCheckpoint(), start := Stop()], **arguments)
    first.run()
    rest = make_training([TrainingCheckpoint(), end := Stop()], resume=True, **arguments)
    rest.run()
    assert start.seen + end.seen == watch.seen


@pytest.mark.parametrize('callback', [WiSEFTCallback(0.0), BestModelCheckpoint('figure')])
def test_what_is_measured_after_is_the_model_in_the_end(make_training, make_evaluators, callback):
    """WiSEFT brings back the pretrained weights, and so their metrics; the best epoch here is the first one."""

    class Figure(Callback):
        first = None

        def on_epoch_end(self, state):
            state.metrics['figure'] = -state.epoch
            self.first = self.first or dict(state.metrics)

    figure = Figure()
    training = make_training([callback, figure], evaluators=make_evaluators({}))
    training.run()
    before, after = training.callbacks.metrics['before'], training.callbacks.metrics['after']
    expected = before if isinstance(callback, WiSEFTCallback) else {name: figure.first[name] for name in after}
    assert after == pytest.approx(expected)
    assert training.state.metrics['average_precision'] == after['average_precision']


def test_metrics_can_be_watched(make_training, make_evaluators):
    evaluators = make_evaluators({'name': 'first'}, {'limit': 1, 'name': 'second'})
    given = [EarlyStopping('second_average_precision', mode='min', patience=2), BestModelCheckpoint('first_hit_at_k')]
    given += [EvaluationCallback('q', name='first'), EvaluationCallback('q', name='second')]
    training = make_training(given, evaluators=evaluators, epochs=10)
    training.run()
    assert training.state.epoch < 10
    assert 'first_hit_at_k' in training.callbacks.metrics['before'] and len(training.callbacks.metrics['after']) == 16


def test_time_of_an_evaluation_is_not_that_of_the_training():
    import time

    reporter = Reporter()
    with reporter.stage('Training'):
        for _ in range(2):
            with reporter.stage('Evaluating'):
                time.sleep(0.2)
    assert reporter.seconds['Evaluating'] >= 0.4
    assert reporter.seconds['Training'] < 0.2
