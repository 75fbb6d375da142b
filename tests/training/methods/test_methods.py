"""Files of methods: the shipped ones, those of the operator, and what is refused."""

from __future__ import annotations

import os

import pytest
import yaml

from finetuner.excepts import NotFoundError, ParameterError
from training.methods import find_methods, load_method
from training.methods.loading import SHIPPED, read_method

PLAIN = {'name': 'mine', 'model': 'all-minilm-l6-v2', 'items': {'loader': 'inline'}}


@pytest.fixture
def write(tmp_path):
    def to_file(values, name='mine.yml'):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return to_file


@pytest.fixture(scope='module')
def shipped():
    return find_methods([SHIPPED])


def test_two_methods_are_shipped(shipped):
    assert shipped.keys() == {'text-to-text', 'text-to-image'}
    text, image = shipped['text-to-text'], shipped['text-to-image']
    assert (text.items.loader, text.items.modality, text.loss) == ('inline', 'text', 'CosineProbMarginRankingLoss')
    assert (image.items.loader, image.items.modality, image.model) == ('folder', 'image', 'clip-base-en')
    assert text.metric == image.metric == 'ndcg_at_10'


def test_a_choice_of_the_search_space_becomes_a_config(shipped):
    chosen = {'learning_rate': 3e-5, 'loss_options.margin': 0.05, 'optimizer_options.weight_decay': 1e-4, 'freeze': 2}
    config = shipped['text-to-text'].config(chosen, 'clicks', run_name='r', epochs=1, model_artifact='a' * 24)
    assert (config.model, config.train_data, config.run_name) == ('all-minilm-l6-v2', 'clicks', 'r')
    assert (config.learning_rate, config.freeze, config.epochs, config.batch_size) == (3e-5, 2, 1, 64)
    assert config.loss_options == {'margin': 0.05} and config.optimizer_options == {'weight_decay': 1e-4}
    with pytest.raises(ParameterError, match="'epochs' is not in the search space of the method 'text-to-text'"):
        shipped['text-to-text'].config({'epochs': 3}, 'clicks')


def test_options_of_the_method_stay_beside_those_that_are_chosen(write):
    method = read_method(write({**PLAIN, 'loss_options': {'margin': 0.1, 'min_difference': 0.01},
                                'search': {'space': {'loss_options.margin': [0.02, 0.05]}}}))  # fmt: skip
    assert method.config({'loss_options.margin': 0.02}, 'x').loss_options == {'margin': 0.02, 'min_difference': 0.01}
    assert method.config({}, 'x').loss_options == {'margin': 0.1, 'min_difference': 0.01}


def test_encoders_have_learning_rates_of_their_own(shipped):
    space = shipped['text-to-image'].search.space
    chosen = {path: values[-1] if isinstance(values, list) else values.high for path, values in space.items()}
    config = shipped['text-to-image'].config(chosen, 'clicks')
    assert config.optimizer_options == {
        'clip-text': {'lr': 2e-5, 'weight_decay': 1e-4},
        'clip-vision': {'lr': 2e-5, 'weight_decay': 1e-4},
    }
    assert config.loss_options == {'margin': 0.05}


def test_methods_of_the_operator_come_first(write, tmp_path, monkeypatch):
    write({**PLAIN, 'name': 'text-to-text', 'description': 'ours'})
    write({**PLAIN, 'name': 'Default Fine Tuning Method'}, 'other.yml')
    monkeypatch.setenv('FINETUNER_METHODS', str(tmp_path))
    assert load_method('text-to-text').description == 'ours'
    assert load_method('Default Fine Tuning Method').version == '1.0.0'
    assert load_method('text-to-image').model == 'clip-base-en'
    with pytest.raises(NotFoundError, match="unknown fine-tuning method 'text-to-txt': did you mean text-to-text"):
        load_method('text-to-txt')


@pytest.mark.parametrize(
    ('values', 'sentence'),
    [
        (
            {'fit': {'epochs': 3}, 'search': {'space': {'epochs.x': [1]}}},
            "search.space: epochs is 3, which has no option 'x'",
        ),
        (
            {'search': {'space': {'optimizer_options.clip-text.lr': [1e-5]}}},
            'clip-text is an encoder of CLIP, which all-minilm-l6-v2 is not',
        ),
        ({'modl': 'x'}, "'modl' is unknown"),
        ({'items': {'loader': 'inline', 'root': '/'}}, "'items.inline.root' is unknown"),
        ({'items': {'loader': 'gopher'}}, "items: Input tag 'gopher' found"),
        ({'items': {'loader': 'http', 'base': 'file:///etc/'}}, 'items.http.base: give the URL of a folder'),
        ({'items': {'loader': 'http', 'base': 'https://host/a?key=1'}}, 'items.http.base: give the URL of a folder'),
        (
            {'clicks': {'position_bias': 'guess'}},
            "mine.yml: clicks.position_bias: give 'estimated', 'power', 'none', or",
        ),
        ({'clicks': {'position_bias': [1, 2]}}, 'mine.yml: clicks.position_bias: give '),
        ({'items': {'loader': 's3', 'bucket': 'A'}}, 'items.s3.bucket: give the name of a bucket'),
        ({'items': {'loader': 's3', 'bucket': 'ab', 'endpoint': 'x'}}, 'items.s3.endpoint: give the URL of the'),
        ({'clicks': {'negative_downsampling': 0}}, 'clicks.negative_downsampling: Input should be greater than 0'),
        ({'clicks': {'confidance': 'none'}}, "'clicks.confidance' is unknown"),
        ({'name': '../x'}, 'mine.yml: name: give letters, digits, spaces and ._-'),
        ({'metric': 'dist_shift'}, "metric is 'dist_shift': give 'ndcg_at_10' or"),
        ({'loss': 'CosineProbMarginLoss'}, "unknown loss 'CosineProbMarginLoss': did you mean CosineProbMargin"),
        ({'loss_options': {'margn': 1}}, "unknown option of CosineProbMarginRankingLoss 'margn': did you mean margin"),
        ({'fit': {'epoch': 3}}, "fit: 'epoch' is no argument of a fit"),
        ({'fit': {'epochs': 0}}, 'epochs: input should be greater than or equal to 1'),
        ({'fit': {'train_data': 'x'}}, "fit: 'train_data' is not for a method to say here"),
        ({'search': {'space': {'learning_rat': [1]}}}, "search.space: 'learning_rat' is no argument of a fit"),
        ({'search': {'space': {'model': ['x']}}}, "search.space: 'model' is not for a method to say here"),
        ({'search': {'space': {'loss_options.margin': [0.1, -1]}}}, 'margin is -1: give a number above 0'),
        ({'search': {'space': {'learning_rate': {'low': 1, 'high': 0}}}}, 'low is 1, and high 0: low must be the less'),
        ({'search': {'space': {'epochs': {'low': 1, 'high': 0}}}}, 'mine.yml: search.space.epochs: low is 1, and high'),
        ({'search': {'space': {'epochs': {'low': 1}}}}, "mine.yml: 'search.space.epochs.high' is missing"),
        ({'search': {'space': {'epochs': 3}}}, 'mine.yml: search.space.epochs: give a list of values to choose of, or'),
        ({'search': {'space': {'epochs': [[1]]}}}, 'mine.yml: search.space.epochs: give a list of values to choose of'),
        ({'search': {'space': {'learning_rate': {'low': 0, 'high': 1, 'log': True}}}}, 'with log, it must be above 0'),
        ({'search': {'space': {'learning_rate': []}}}, 'search.space.learning_rate: give a list of values'),
        ({'search': {'evaluations': 0}}, 'search.evaluations: Input should be greater than or equal to 1'),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_refused_by_name(write, values, sentence):
    with pytest.raises(ParameterError, match='mine.yml') as caught:
        read_method(write({**PLAIN, **values}))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('name: [', 'is no YAML'),
        ('- a\n- b\n', 'holds no mapping'),
        ('', 'holds no mapping'),
        ('name: a\nname: b\n', "'name' is there twice"),
        ('name: !!python/object/apply:os.system [ls]\n', 'is no YAML'),
        ('x: "' + 'y' * (1 << 20) + '"', 'is larger than 1 MiB'),
    ],
    ids=['broken', 'list', 'empty', 'twice', 'python', 'large'],
)
def test_what_is_no_mapping_is_refused(write, text, sentence):
    with pytest.raises(ParameterError, match=sentence):
        read_method(write(text))


def test_numbers_are_numbers_with_and_without_a_point(write):
    text = yaml.safe_dump(PLAIN) + 'search: {space: {learning_rate: {low: 1e-6, high: 2.5e-4, log: true}}}\n'
    space = read_method(write(text)).search.space['learning_rate']
    assert (space.low, space.high) == (1e-6, 2.5e-4)


def test_values_of_a_search_space_keep_their_types(write):
    """By which trainings of earlier iterations are known again."""
    method = read_method(write({**PLAIN, 'search': {'space': {'optimizer_options.weight_decay': [0.0, 1.0]}}}))
    assert [type(value) for value in method.search.space['optimizer_options.weight_decay']] == [float, float]


def test_a_method_that_was_changed_has_another_digest(write):
    first = read_method(write(PLAIN)).digest
    assert read_method(write(PLAIN, 'again.yml')).digest == first
    assert read_method(write({**PLAIN, 'fit': {'epochs': 3}})).digest != first


def test_one_name_in_two_files_of_a_folder_is_refused(write, tmp_path):
    write(PLAIN)
    write(PLAIN, 'again.yml')
    with pytest.raises(ParameterError, match="all hold the method 'mine'"):
        load_method('mine', [tmp_path])


def test_a_wrong_file_is_in_the_way_of_its_own_method_alone(write, tmp_path):
    folders = [tmp_path, SHIPPED]
    write({**PLAIN, 'name': 'good'}, 'good.yml')
    write('name: [', 'broken.yml')
    write({**PLAIN, 'name': 'misspelt', 'modl': 'x'}, 'misspelt.yml')
    for name in ('one', 'another'):
        write({**PLAIN, 'name': 'twice'}, f'{name}.yml')
    assert load_method('good', folders).name == 'good' and load_method('text-to-text', folders)
    assert find_methods(folders).keys() == {'good', 'text-to-text', 'text-to-image'}
    with pytest.raises(ParameterError, match="misspelt.yml: 'modl' is unknown"):
        load_method('misspelt', folders)
    with pytest.raises(ParameterError, match="another.yml and .*one.yml all hold the method 'twice'"):
        load_method('twice', folders)
    with pytest.raises(NotFoundError, match="unknown fine-tuning method 'goood': did you mean good") as refused:
        load_method('goood', folders)
    reasons = str(refused.value).partition('. Files that cannot be read: ')[2]
    for reason in ('broken.yml is no YAML', "misspelt.yml: 'modl' is unknown", "all hold the method 'twice'"):
        assert reason in reasons


@pytest.mark.parametrize('text', ['name: text-to-text\nmodel: [', 'name: text-to-text\nmodl: x\n'])
def test_a_shipped_method_does_not_take_the_place_of_an_own_one_that_is_malformed(write, tmp_path, text):
    write(text)
    with pytest.raises(ParameterError, match='mine.yml'):
        load_method('text-to-text', [tmp_path, SHIPPED])


def test_of_many_wrong_files_some_are_told_shortly(write, tmp_path):
    for number in range(7):
        write({**PLAIN, 'name': f'm{number}', 'x' * 1000: number}, f'{number}.yml')
    with pytest.raises(NotFoundError, match='and 2 more') as refused:
        load_method('other', [tmp_path])
    assert len(str(refused.value)) < 2000


OURS = """
from __future__ import annotations
from training.methods import Method

class Ours(Method):
    bonus: float = 2.0

    def config(self, chosen, train_data, **arguments):
        return super().config(chosen, train_data, **arguments | {'epochs': 7})
"""


def test_a_file_may_name_a_class_of_the_operator(write, tmp_path):
    write(OURS, 'our_shop.py')
    method = read_method(write({**PLAIN, 'class': 'our_shop.Ours', 'bonus': 3}))
    assert (method.bonus, method.name, method.config({}, 'clicks').epochs) == (3.0, 'mine', 7)
    assert find_methods([tmp_path])['mine'].bonus == 3.0
    with pytest.raises(ParameterError, match=r"mine.yml: 'bonus' is unknown"):
        read_method(write({**PLAIN, 'bonus': 3}))
    with pytest.raises(ParameterError, match='mine.yml: bonus: Input should be a valid number'):
        read_method(write({**PLAIN, 'class': 'our_shop.Ours', 'bonus': 'much'}))


@pytest.mark.parametrize(
    ('more', 'sentence'),
    [
        ('def feedbck(self, sessions): ...', "has 'feedbck', which Method does not have: did you mean feedback"),
        ('@property\n    def promoted_alias_(self): ...', "has 'promoted_alias_', .*did you mean promoted_alias"),
        ('load_itms: ClassVar = None', "has 'load_itms', .*did you mean load_items"),
        ('def xyz(self): ...', "has 'xyz', .*begin its name with an underscore if it is your own"),
    ],
)
def test_a_misspelt_method_is_told(write, more, sentence):
    code = OURS.replace('import Method', 'import Method\nfrom typing import ClassVar')
    write(f'{code}\n    {more}\n', 'our_shop.py')
    with pytest.raises(ParameterError, match=f'our_shop.py: the class Ours {sentence}'):
        read_method(write({**PLAIN, 'class': 'our_shop.Ours'}))


def test_a_class_may_have_helpers_and_a_base_of_its_own(write):
    code = OURS.replace('(Method):', '(Method):\n    _rate = 3\n\n    def _helper(self): ...')
    write(f'{code}\nclass Further(Ours):\n    fee: int = 1\n\n    def feedback(self, sessions): ...', 'our_shop.py')
    assert read_method(write({**PLAIN, 'class': 'our_shop.Further'})).fee == 1
    write(f'{code}\n    def feedbck(self): ...\n\nclass Further(Ours): ...', 'our_base.py')
    with pytest.raises(ParameterError, match="the class Ours has 'feedbck'"):
        read_method(write({**PLAIN, 'class': 'our_base.Further'}))


def test_a_class_that_has_changed_is_read_anew(write):
    path = write(OURS, 'our_shop.py')
    file = write({**PLAIN, 'class': 'our_shop.Ours'})
    assert read_method(file).bonus == 2.0
    path.write_text(OURS.replace('2.0', '4.0'))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert read_method(file).bonus == 4.0


@pytest.mark.parametrize('written', ['{{ x }}: 1', '? [a, b]', 'note: 2024-02-30', 'x: !!int abc', '[' * 3000])
def test_what_yaml_cannot_make_sense_of_is_told_with_its_file(write, written):
    with pytest.raises(ParameterError, match='mine.yml is no '):
        read_method(write(written))


def test_code_that_fails_is_told_with_its_file(write):
    write(OURS.replace('return super()', "raise KeyError('x')\n        return super()"), 'our_shop.py')
    with pytest.raises(ParameterError, match="mine.yml: KeyError: 'x'"):
        read_method(write({**PLAIN, 'class': 'our_shop.Ours'}))
    write('import sys\nsys.exit(3)', 'leaves.py')
    with pytest.raises(ParameterError, match='leaves.py cannot be imported: SystemExit: 3'):
        read_method(write({**PLAIN, 'class': 'leaves.Ours'}))


@pytest.mark.parametrize(
    ('named', 'sentence'),
    [
        ('Ours', "class is 'Ours': name a Python file beside this one"),
        ('../our_shop.Ours', "class is '../our_shop.Ours': name a Python file beside this one"),
        (['our_shop'], 'name a Python file beside this one'),
        ('theirs.Ours', 'class is of .*theirs.py, which cannot be read: No such file or directory'),
        ('our_shop.Theirs', 'our_shop.py has no class Theirs that is derived from training.methods.Method'),
        ('our_shop.annotations', 'our_shop.py has no class annotations that is derived'),
        ('broken.Ours', 'broken.py cannot be imported: NameError: '),
    ],
)
def test_a_class_that_is_not_to_be_had_is_told(write, named, sentence):
    write(OURS, 'our_shop.py')
    write('nothing + 1', 'broken.py')
    with pytest.raises(ParameterError, match=sentence):
        read_method(write({**PLAIN, 'class': named}))
