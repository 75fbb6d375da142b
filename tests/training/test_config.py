from __future__ import annotations

import pytest

from finetuner.callback import EvaluationCallback
from finetuner.excepts import ParameterError
from training.config import FitConfig


def config(**arguments):
    return FitConfig.from_arguments(**{'model': 'all-minilm-l6-v2', 'train_data': 'train'} | arguments)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'los': 'TripletMarginLoss'}, "unknown argument 'los': did you mean loss?"),
        ({'epochs': 0}, 'epochs: input should be greater than or equal to 1, got 0'),
        ({'epochs': 'many'}, "epochs: input should be a valid integer, .*, got 'many'"),
        ({'batch_size': 3.5}, 'batch_size: input should be a valid integer'),
        ({'learning_rate': -1e-5}, 'learning_rate: input should be greater than 0'),
        ({'learning_rate': float('inf')}, 'learning_rate: input should be a finite number'),
        ({'max_grad_norm': float('inf')}, 'max_grad_norm: input should be a finite number'),
        ({'loss_optimizer': 'SGD'}, 'loss_optimizer is given, and TripletMarginLoss has no weights to learn'),
        ({'loss_optimizer_options': {'lr': 1}}, 'loss_optimizer_options is given, and TripletMarginLoss has no'),
        ({'loss': 'CLIPLoss', 'loss_optimizer_options': {'lr': 1}}, 'CLIPLoss has no weights but single numbers'),
        ({'loss': 'CLIPLoss', 'loss_optimizer': 'SGD', 'precision': 'fp16'}, "'fp16' cannot be used with CLIPLoss"),
        ({'model_options': {'poolin': 'cls'}}, "model_options: 'poolin' is not an option of this model"),
        ({'model': 'mlp', 'model_options': {'input_size': 3}}, "model_options: 'hidden_sizes' is missing"),
        (
            {
                'loss': 'CrossBatchMemory',
                'loss_options': {'loss': 'ContrastiveLoss', 'memory_size': 16},
                'batch_size': 32,
            },
            'memory_size is 16, which a batch of 32 items does not fit in',
        ),
        ({'model': ''}, 'model: string should have at least 1 character'),
        ({'model': None}, 'model: input should be a valid string'),
        ({'device': 'tpu'}, "^device is 'tpu': give 'cpu', 'cuda' or a GPU by its number"),
        ({'sampler': 'best'}, "sampler: input should be 'auto', 'class' or 'random', got 'best'"),
        ({'loss': 'TripletLoss'}, "unknown loss 'TripletLoss': did you mean .*TripletMarginLoss"),
        ({'loss_options': {'margn': 0.1}}, "unknown option of TripletMarginLoss 'margn': did you mean margin"),
        ({'loss': 'ArcFaceLoss', 'loss_options': {'num_classes': 3}}, "loss_options: 'num_classes' is filled in"),
        ({'loss': 'RankedListLoss'}, 'loss_options: RankedListLoss needs margin and Tn'),
        ({'loss_options': {'distance': 'Cosine'}}, "unknown distance 'Cosine': did you mean CosineSimilarity"),
        ({'miner': 'TripletMiner'}, "unknown miner 'TripletMiner': did you mean TripletMarginMiner"),
        ({'miner': 'HDCMiner', 'miner_options': {'eps': 1}}, "unknown option of HDCMiner 'eps'"),
        ({'miner_options': {'margin': 1}}, 'miner_options are given without a miner'),
        ({'optimizer': 'adamw'}, "unknown optimizer 'adamw': did you mean AdamW"),
        ({'seed': 2**32}, 'seed'),
        ({'precision': 'fp16', 'device': 'cpu'}, "precision 'fp16' needs a GPU"),
        ({'precision': 'fp16', 'loss': 'ArcFaceLoss'}, "precision 'fp16' cannot be used with ArcFaceLoss"),
        ({'scheduler': 'linear', 'scheduler_options': {'num_training_steps': 0}}, 'num_training_steps'),
        (
            {'scheduler': 'linear', 'scheduler_options': {'num_training_steps': 'x'}},
            "^scheduler_options.num_training_steps: give 'auto' or how many, 1 or more, got 'x'$",
        ),
        ({'optimizer': 'LBFGS', 'precision': 'fp16'}, 'LBFGS'),
        ({'optimizer_options': {'weightdecay': 0}}, "optimizer_options: unknown option of Adam 'weightdecay'"),
        ({'optimizer_options': {'lr': -1}}, 'optimizer_options of Adam: .*learning rate'),
        ({'loss_optimizer': 'Adm'}, "unknown loss_optimizer 'Adm'"),
        ({'scheduler': 'cosin'}, "unknown scheduler 'cosin': did you mean cosine"),
        ({'scheduler': 'linear', 'scheduler_options': {'warmup': 3}}, 'scheduler_options.warmup: extra inputs'),
        ({'scheduler_options': {}}, 'scheduler_options are given without a scheduler'),
        ({'freeze': -1}, '^freeze: give true, false, or how many layer groups to freeze, got -1$'),
        ({'freeze': 'maybe'}, "^freeze: give true, false, or how many layer groups to freeze, got 'maybe'$"),
        ({'gradient_cache': 'maybe'}, "^gradient_cache: give true, false or 'auto', got 'maybe'$"),
        ({'lora': 'maybe'}, '^lora: give true, false or the options of adapters, such as .*got .maybe'),
        ({'lora': {'r': -1}}, '^lora.r: input should be greater than or equal to 1, got -1$'),
        ({'optimizer_options': {'lr': 'x'}}, "^optimizer_options: lr is 'x': give a number$"),
        ({'optimizer_options': {'weight_decay': [1]}}, r'^optimizer_options: weight_decay is \[1\]: give a number$'),
        ({'optimizer_options': {'betas': 0.9}}, '^optimizer_options: betas is 0.9: give 2 numbers$'),
        ({'optimizer_options': {'betas': [0.9, 'x']}}, r"^optimizer_options: betas is .*'x'\]: give 2 numbers$"),
        ({'optimizer_options': {'amsgrad': 'no'}}, "^optimizer_options: amsgrad is 'no': give True or False$"),
        ({'optimizer': 'LBFGS', 'optimizer_options': {'max_iter': 1.5}}, 'max_iter is 1.5: give a whole number$'),
        (
            {'loss': 'ArcFaceLoss', 'loss_optimizer_options': {'lr': 'x'}},
            "^loss_optimizer_options: lr is 'x': give a number$",
        ),
        ({'loss_options': {'margin': 'x'}}, "^loss_options of TripletMarginLoss: margin is 'x': give a number$"),
        ({'num_items_per_class': 0.0}, 'num_items_per_class: .*, got 0$'),
        ({'val_split': 1.0}, 'val_split'),
        ({'output_dim': 0}, 'output_dim'),
        ({'lora': {'rank': 4}}, 'rank'),
        ({'lora': True, 'freeze': True}, 'lora trains adapters in the backbone, and freeze=True freezes it'),
        ({'onnx_precision': 'int4'}, 'onnx_precision'),
        ({'time_limit': 0}, 'time_limit'),
        ({'csv_options': {'size': 3}}, 'csv_options tell how to read files'),
        ({'callbacks': [{'name': 'EarlyStoping', 'options': {}}]}, 'EarlyStopping'),
        ({'callbacks': [{'name': 'EarlyStopping', 'options': {}}]}, 'val_loss needs eval_data or val_split'),
        (
            {'callbacks': [{'name': 'EvaluationCallback', 'options': {'query_data': 'q', 'distance': 'dot'}}]},
            'distance',
        ),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name(arguments, sentence):
    with pytest.raises(ParameterError, match=sentence):
        config(**arguments)


def test_every_wrong_argument_is_named():
    with pytest.raises(ParameterError, match=r'epochs: .*; batch_size: '):
        config(epochs=0, batch_size=1)


def test_whole_numbers_may_come_as_floats():
    checked = config(
        epochs=3.0,
        batch_size=32.0,
        scheduler='linear',
        scheduler_options={'num_warmup_steps': 10.0},
        loss='SoftTripleLoss',
        loss_options={'centers_per_class': 5.0, 'gamma': 0.1},
    )
    assert (checked.epochs, checked.batch_size) == (3, 32)
    assert checked.scheduler_options is not None
    assert checked.scheduler_options.num_warmup_steps == 10
    assert checked.loss_options == {'centers_per_class': 5, 'gamma': 0.1}
    assert isinstance(checked.loss_options['centers_per_class'], int)


@pytest.mark.parametrize(
    'arguments',
    [
        {'loss': 'CLIPLoss', 'precision': 'fp16'},
        {'loss': 'SigLIPLoss', 'loss_optimizer': 'SGD', 'loss_optimizer_options': {'lr': 0.1}},
        {'loss': 'ArcFaceLoss', 'loss_optimizer': 'SGD'},
        {'model': 'unknown/model', 'model_options': {'anything': 1}},
        {'model': 'mlp', 'model_artifact': 'earlier'},
    ],
)
def test_what_works_together_is_let_through(arguments):
    config(**arguments)


def test_a_stored_config_is_read_back():
    checked = config(callbacks=[EvaluationCallback('q', limit=5)], scheduler='linear', loss='ArcFaceLoss')
    assert FitConfig.from_arguments(**checked.model_dump(mode='json')) == checked


def test_all_data_sets_are_named_once():
    checked = config(eval_data='held-out', callbacks=[EvaluationCallback('q', 'train'), EvaluationCallback('q')])
    assert checked.data == ['train', 'held-out', 'q']


def test_val_split_is_ignored_where_there_are_eval_data(caplog):
    config = FitConfig.from_arguments(model='m', train_data='t', val_split=0.2, eval_data='held-out')
    assert config.val_split == 0 and 'val_split is ignored' in caplog.text


@pytest.mark.parametrize('model', ['all-minilm-l6-v2', 'resnet-base', 'pointnet-base'])
def test_a_freeze_that_leaves_nothing_is_refused_at_the_door(model):
    with pytest.raises(ParameterError, match=f'freeze leaves nothing to train of {model}: give output_dim'):
        FitConfig.from_arguments(model=model, train_data='t', freeze=True)


@pytest.mark.parametrize(
    'arguments',
    [
        {'output_dim': 8},
        {'loss': 'ArcFaceLoss'},
        {'freeze': 3},
        {'model_artifact': 'a'},  # it may have a head
        {'model': 'distiluse-base-multi'},  # it has one
        {'model': 'some/hub-id'},
    ],
)
def test_a_freeze_that_may_leave_something_passes(arguments):
    FitConfig.from_arguments(**{'model': 'all-minilm-l6-v2', 'train_data': 't', 'freeze': True, **arguments})
