"""Whole runs on CSV files, through the function that users call."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest
import torch

import training
from finetuner.callback import EvaluationCallback
from finetuner.excepts import DataError, ParameterError
from training.config import FitConfig
from training.loop import MetricLearning, make_optimizers, train
from training.losses import make_loss
from training.pipeline import make_accelerator
from training.progress import Progress, Reporter
from training.samplers import ClassSampler


def weights_digest(artifact) -> str:
    with zipfile.ZipFile(artifact) as file:
        (name,) = [name for name in file.namelist() if name.endswith('model.safetensors')]
        return hashlib.sha256(file.read(name)).hexdigest()


@pytest.fixture(scope='module')
def fitted(word_model, train_csv, test_csv, tmp_path_factory):
    """A run, and the progress that it told."""
    progress: list[Progress] = []
    result = training.fit(
        train_csv,
        test_csv,
        str(word_model),
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


def test_the_same_run_gives_the_same_weights(fitted, word_model, train_csv, tmp_path):
    arguments = {'epochs': 4, 'batch_size': 24, 'learning_rate': 2e-3, 'device': 'cpu'}
    torch.rand(3), np.random.rand(3)  # what was drawn before makes no difference
    again = training.fit(train_csv, None, str(word_model), directory=tmp_path / 'again', **arguments)
    assert weights_digest(again.artifact) == weights_digest(fitted[0].artifact)


def fit_without_export(task, texts, seed=0, **arguments):
    """The loop alone."""
    config = FitConfig.from_arguments(model='m', train_data='t', device='cpu', batch_size=24, seed=seed, **arguments)
    torch.manual_seed(seed)
    sampler = ClassSampler(texts.labels, 24, 4, seed)
    losses: list[float] = []
    reporter = Reporter(lambda progress: losses.append(progress.loss))
    train(task, texts, sampler, config, make_accelerator(config), reporter)
    return losses


@pytest.mark.parametrize(
    'arguments',
    [
        {'optimizer': 'AdamW', 'scheduler': 'linear', 'scheduler_options': {'num_warmup_steps': 3}},
        {'optimizer': 'RAdam', 'scheduler': 'cosine', 'scheduler_options': {'scheduler_step': 'epoch'}},
        {'max_grad_norm': 1.0, 'gradient_accumulation_steps': 2},
        {'loss': 'ArcFaceLoss', 'loss_optimizer': 'SGD', 'loss_optimizer_options': {'lr': 0.05}},
        {'precision': 'bf16'},
    ],
)  # fmt: skip
def test_the_loss_falls_with_any_options(encoder, tokenised, arguments):
    loss = make_loss(arguments.get('loss', 'MultiSimilarityLoss'), None, num_classes=6, embedding_size=encoder.dim)
    arguments = {'learning_rate': 2e-3} | arguments
    losses = fit_without_export(MetricLearning(encoder, loss), tokenised, epochs=4, **arguments)
    assert losses[-1] < losses[0]


def test_weights_of_the_loss_are_trained_too(encoder):
    loss = make_loss('ProxyAnchorLoss', None, num_classes=6, embedding_size=encoder.dim)
    config = FitConfig.from_arguments(model='m', train_data='t', loss='ProxyAnchorLoss', optimizer='AdamW')
    optimizers = make_optimizers(MetricLearning(encoder, loss), config)
    assert [type(optimizer).__name__ for optimizer in optimizers] == ['AdamW', 'AdamW']
    assert optimizers[1].param_groups[0]['params'] == list(loss.parameters())
    assert optimizers[1].param_groups[0]['lr'] > optimizers[0].param_groups[0]['lr']
    assert all(optimizer.defaults['fused'] for optimizer in optimizers)


@pytest.mark.parametrize('accumulation', [2, 3])
def test_two_accumulated_halves_are_one_step(encoder, tokenised, accumulation):
    """Gradients of a mean over pairs of batches: the same as of both batches in one backward, in a short window too."""
    rows = [np.arange(0, 24), np.arange(24, 48)]

    class Given:
        def __len__(self):
            return 2

        def batches(self, epoch):
            return iter(rows)

    loss = make_loss('MultiSimilarityLoss', None, num_classes=6, embedding_size=encoder.dim)
    task = MetricLearning(encoder, loss)
    start = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    arguments = {
        'optimizer': 'SGD',
        'learning_rate': 0.1,
        'epochs': 1,
        'gradient_accumulation_steps': accumulation,
        'device': 'cpu',
    }
    config = FitConfig.from_arguments(model='m', train_data='t', **arguments)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    train(task, tokenised, Given(), config, make_accelerator(config), Reporter())
    stepped = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}

    encoder.load_state_dict(start, strict=False)
    both = [task(tokenised.tokens, half, torch.from_numpy(tokenised.labels[half]).long()) for half in rows]
    encoder.zero_grad()
    (sum(both) / 2).backward()
    for name, weight in encoder.named_parameters():
        if weight.grad is not None:
            assert torch.allclose(stepped[name], weight - 0.1 * weight.grad, atol=1e-6), name


def test_a_diverging_run_says_so(encoder, tokenised):
    with torch.no_grad():
        encoder.backbone.embeddings.word_embeddings.weight[5:] = float('nan')
    loss = make_loss('ArcFaceLoss', None, num_classes=6, embedding_size=encoder.dim)
    with pytest.raises(FloatingPointError, match=r'the loss is nan in step \d+ of epoch 1: lower learning_rate'):
        fit_without_export(MetricLearning(encoder, loss), tokenised, epochs=1, loss='ArcFaceLoss')


def test_queries_are_no_matches_of_themselves(word_model, train_csv, tmp_path):
    callback = EvaluationCallback(str(train_csv), limit=5, gather_examples=True)
    result = training.fit(
        train_csv, model=str(word_model), directory=tmp_path, epochs=1, callbacks=[callback], device='cpu'
    )
    assert result.metrics['before']['precision_at_k'] < 1
    for query, matches in result.examples['before'].items():
        assert len(matches) == 5
        assert train_csv.read_text().count(query) > 1 or query not in matches


def test_a_missing_file_and_a_wrong_argument_are_refused_at_once(word_model, train_csv, tmp_path):
    with pytest.raises(DataError, match=r'the file nowhere\.csv does not exist'):
        training.fit('nowhere.csv', model=str(word_model), directory=tmp_path)
    with pytest.raises(ParameterError, match=r"unknown argument 'epoch': did you mean epochs"):
        training.fit(train_csv, model=str(word_model), directory=tmp_path, epoch=3)


def test_one_class_is_refused(word_model, tmp_path):
    file = tmp_path / 'one.csv'
    file.write_text('text,label\n' + ''.join(f'text {n},same\n' for n in range(10)))
    with pytest.raises(ValueError, match='1 class: at least 2 are needed'):
        training.fit(file, model=str(word_model), directory=tmp_path / 'run', device='cpu')
