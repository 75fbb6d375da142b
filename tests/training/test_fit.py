"""Whole runs on CSV files, through the function that users call."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import pytest

import training
from finetuner.callback import BestModelCheckpoint, EvaluationCallback, TrainingCheckpoint
from finetuner.excepts import DataError, ParameterError
from training import batch_size, pipeline
from training.callbacks import Callback
from training.progress import Progress


def weights_digest(artifact) -> str:
    with zipfile.ZipFile(artifact) as file:
        (name,) = [name for name in file.namelist() if name.endswith('model.safetensors')]
        return hashlib.sha256(file.read(name)).hexdigest()


@pytest.fixture(scope='module')
def fitted(word_model, train_csv, test_csv, tmp_path_factory):
    """A run, and the progress that it told."""
    progress: list[Progress] = []
    result = training.fit(
        str(word_model),
        train_csv,
        test_csv,
        directory=tmp_path_factory.mktemp('run') / 'first',
        epochs=4,
        batch_size=24,
        learning_rate=2e-3,
        device='cpu',
        report=progress.append,
    )
    return result, progress


def test_the_model_learns(fitted):
    before, after = fitted[0].metrics['before'], fitted[0].metrics['after']
    assert after['average_precision'] > before['average_precision'] + 0.1
    assert after['precision_at_k'] > before['precision_at_k'] + 0.1
    assert set(after) == {
        'precision_at_k', 'recall_at_k', 'f1_score_at_k', 'hit_at_k', 'average_precision', 'reciprocal_rank',
        'ndcg_at_k', 'dcg_at_k',
    }  # fmt: skip


def test_progress_reaches_the_end(fitted):
    last = [progress for progress in fitted[1] if progress.stage == 'Training'][-1]
    assert (last.epoch, last.epochs, last.step, last.steps) == (4, 4, 5, 5)
    assert last.eta == 0
    assert last.loss is not None


def test_the_artifact_holds_the_trained_model(fitted, test_csv, train_csv):
    from finetuner.artifact import open_artifact
    from finetuner.data import read_csv
    from finetuner.inference import load_engine
    from training.evaluation import evaluate

    result = fitted[0]
    artifact = open_artifact(result.artifact)
    assert artifact.name == 'first'
    assert artifact.metrics == result.metrics
    assert artifact.config['epochs'] == 4
    engine = load_engine(artifact)
    query, index = list(read_csv(test_csv)), list(read_csv(train_csv))
    names = sorted({document.tags['finetuner_label'] for document in index})
    labels = [np.array([names.index(document.tags['finetuner_label']) for document in side]) for side in (query, index)]
    embeddings = [engine.encode_texts([document.text for document in side]) for side in (query, index)]
    metrics = evaluate(embeddings[0], labels[0], embeddings[1], labels[1])
    assert metrics['average_precision'] == pytest.approx(result.metrics['after']['average_precision'], abs=0.01)


def test_examples_show_queries_and_their_matches(fitted, test_csv):
    before, after = fitted[0].examples['before'], fitted[0].examples['after']
    assert before.keys() == after.keys()
    assert 5 <= len(before) <= 20
    for query, matches in after.items():
        assert query in test_csv.read_text()
        assert len(matches) == 20


def test_scratch_files_are_gone(fitted):
    artifact = fitted[0].artifact
    assert [path.name for path in artifact.parent.iterdir()] == ['first.zip']


def test_the_same_run_gives_the_same_weights(fitted, word_model, train_csv, test_csv, tmp_path):
    arguments = {'epochs': 4, 'batch_size': 24, 'learning_rate': 2e-3, 'device': 'cpu'}
    np.random.rand(3)  # what was drawn before makes no difference
    again = training.fit(str(word_model), train_csv, test_csv, directory=tmp_path / 'again', **arguments)
    assert weights_digest(again.artifact) == weights_digest(fitted[0].artifact)


def test_a_diverging_run_says_so(word_model, train_csv, tmp_path):
    with pytest.raises(FloatingPointError, match=r'the loss is nan in step \d+ of epoch \d+: lower learning_rate'):
        training.fit(
            str(word_model), train_csv, directory=tmp_path, learning_rate=1e30, optimizer='SGD', epochs=30, device='cpu'
        )


def test_training_goes_on_from_an_artifact(fitted, word_model, train_csv, tmp_path):
    result = training.fit(
        str(word_model),
        train_csv,
        train_csv,
        directory=tmp_path,
        model_artifact=str(fitted[0].artifact),
        epochs=1,
        learning_rate=1e-6,
        device='cpu',
    )
    expected = training.fit(
        str(word_model), train_csv, train_csv, directory=tmp_path / 'new', epochs=1, learning_rate=1e-6, device='cpu'
    )
    assert result.metrics['before']['average_precision'] > expected.metrics['before']['average_precision'] + 0.1


def test_queries_are_no_matches_of_themselves(word_model, train_csv, tmp_path):
    callback = EvaluationCallback(str(train_csv), limit=5, gather_examples=True)
    result = training.fit(str(word_model), train_csv, directory=tmp_path, epochs=1, callbacks=[callback], device='cpu')
    assert result.metrics['before']['precision_at_k'] < 1
    for query, matches in result.examples['before'].items():
        assert len(matches) == 5
        assert train_csv.read_text().count(query) > 1 or query not in matches


def test_a_missing_file_and_a_wrong_argument_are_refused_at_once(word_model, train_csv, tmp_path):
    with pytest.raises(DataError, match=r'the file nowhere\.csv does not exist'):
        training.fit(str(word_model), 'nowhere.csv', directory=tmp_path)
    with pytest.raises(ParameterError, match=r"unknown argument 'epoch': did you mean epochs"):
        training.fit(str(word_model), train_csv, directory=tmp_path, epoch=3)


def test_files_are_read_as_a_dict_says(word_model, train_csv, tmp_path):
    arguments = {'directory': tmp_path, 'epochs': 1, 'batch_size': 8, 'device': 'cpu'}
    result = training.fit(str(word_model), train_csv, csv_options={'size': 24}, **arguments)
    assert result.samples == 24
    with pytest.raises(ParameterError, match=r"csv_options: unknown option 'dialct': did you mean dialect"):
        training.fit(str(word_model), train_csv, csv_options={'dialct': 'excel'}, **arguments)
    with pytest.raises(ParameterError, match='csv_options: size is 0'):
        training.fit(str(word_model), train_csv, csv_options={'size': 0}, **arguments)


def test_one_class_is_refused(word_model, tmp_path):
    file = tmp_path / 'one.csv'
    file.write_text('text,label\n' + ''.join(f'text {n},same\n' for n in range(10)))
    with pytest.raises(ValueError, match='1 class: at least 2 are needed'):
        training.fit(str(word_model), file, directory=tmp_path / 'run', device='cpu')


@pytest.mark.slow
def test_a_training_goes_on_with_less_free_memory(word_model, train_csv, tmp_path, monkeypatch):
    class Stop(Callback):
        def on_batch_end(self, state):
            state.stop = state.stop or state.global_step == 2

    free = {'bytes': 1 << 34}
    monkeypatch.setattr(batch_size, 'available', lambda device: free['bytes'])
    arguments = {'directory': tmp_path, 'epochs': 1, 'callbacks': [TrainingCheckpoint(), Stop()], 'device': 'cpu'}
    monkeypatch.setattr(batch_size, 'BATCHES_PER_EPOCH', 4)
    training.fit(str(word_model), train_csv, **arguments)
    (record,) = (json.loads(file.read_text()) for file in tmp_path.glob('checkpoints/*/state.json'))
    assert record['identity']['batch_size'] == 16 and record['identity']['budgets']['model'] > 1000
    free['bytes'] = 0
    arguments['callbacks'] = [TrainingCheckpoint(), Stop()]
    training.fit(str(word_model), train_csv, resume=True, **arguments)
    (again,) = (json.loads(file.read_text()) for file in tmp_path.glob('checkpoints/*/state.json'))
    assert again['identity'] == record['identity']
    assert again['position']['global_step'] == 8


def test_what_cannot_work_is_told_before_the_data_are_prepared(word_model, train_csv, tmp_path, monkeypatch):
    arguments = {'directory': tmp_path, 'epochs': 1, 'batch_size': 60, 'device': 'cpu'}
    training.fit(str(word_model), train_csv, callbacks=[TrainingCheckpoint()], **arguments)

    def refuse(*_):
        raise AssertionError('prepared')

    monkeypatch.setattr(pipeline, 'prepare', refuse)
    for changed, sentence in (
        ({}, 'holds a checkpoint of an earlier training'),
        ({'resume': True, 'seed': 3}, 'the checkpoint is of another config: seed was 0 and is 3'),
        ({'callbacks': None, 'freeze': True}, 'freeze leaves nothing to train'),
    ):
        with pytest.raises(ValueError, match=sentence):
            training.fit(str(word_model), train_csv, **{'callbacks': [TrainingCheckpoint()]} | arguments | changed)


def test_a_figure_that_is_not_there_is_told_before_the_training(word_model, train_csv, tmp_path):
    callbacks = [EvaluationCallback(str(train_csv)), BestModelCheckpoint('other_precision_at_k')]
    with pytest.raises(ValueError, match="BestModelCheckpoint: monitor='other_precision_at_k' is not there"):
        training.fit(str(word_model), train_csv, directory=tmp_path, callbacks=callbacks, device='cpu')
    assert not list(tmp_path.glob('best*'))


def test_resume_needs_what_keeps_checkpoints(word_model, train_csv, tmp_path):
    with pytest.raises(ParameterError, match='resume goes on from what the callback TrainingCheckpoint keeps'):
        training.fit(str(word_model), train_csv, directory=tmp_path / 'run', resume=True)


def test_two_trainings_do_not_share_a_directory(word_model, train_csv, tmp_path):
    class Another(Callback):
        def on_epoch_end(self, state):
            with pytest.raises(ValueError, match='another training is at work in .*: give another directory'):
                training.fit(str(word_model), train_csv, directory=tmp_path / 'run', epochs=1, device='cpu')

    training.fit(str(word_model), train_csv, directory=tmp_path / 'run', epochs=1, device='cpu', callbacks=[Another()])


def test_pairs_of_equal_contents_are_refused(word_model, tmp_path):
    (tmp_path / 'pairs.csv').write_text('anchor,positive\n' + ''.join(f'text {n},text {n}\n' for n in range(20)))
    with pytest.raises(DataError, match='both contents of every pair of .* are equal'):
        training.fit(
            str(word_model),
            tmp_path / 'pairs.csv',
            directory=tmp_path / 'run',
            loss='MultipleNegativeRankingLoss',
            device='cpu',
        )


def test_a_run_does_not_go_on_with_other_evaluation_data(word_model, train_csv, test_csv, tmp_path):
    class Stop(Callback):
        def on_epoch_end(self, state):
            state.stop = True

    held_out = tmp_path / 'held-out.csv'
    held_out.write_text(test_csv.read_text())

    def fit(*callbacks, resume=False):
        callbacks = [TrainingCheckpoint(), *callbacks]
        options = {'directory': tmp_path / 'run', 'epochs': 2, 'device': 'cpu', 'batch_size': 24}
        return training.fit(str(word_model), train_csv, held_out, callbacks=callbacks, resume=resume, **options)

    fit(Stop())
    held_out.write_text('\n'.join(test_csv.read_text().splitlines()[:-1]) + '\n')
    with pytest.raises(ValueError, match='is of another training: evaluation data was'):
        fit(Stop(), resume=True)


def test_why_a_training_ended_early_is_in_the_log(word_model, train_csv, tmp_path, caplog):
    caplog.set_level('INFO', 'training')
    options = {'directory': tmp_path / 'run', 'device': 'cpu', 'batch_size': 24, 'time_limit': 1e-6}
    training.fit(str(word_model), train_csv, callbacks=[TrainingCheckpoint()], resume=True, **options)
    assert 'There is no checkpoint in' in caplog.text
    assert 'Stopped in epoch 1 of 5, after 1 of its 5 batches: time_limit: 1e-06 seconds have passed' in caplog.text
