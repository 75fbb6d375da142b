"""Tokens of trackers: with the run, but not in what is stored of it."""

import stat

from finetuner.callback import EarlyStopping, WandBLogger
from training.config import FitConfig
from training.run_folder import SECRETS
from training.secrets import keep_secrets, restore_secrets


def test_tokens_come_back_where_they_were(tmp_path):
    callbacks = [EarlyStopping('train_loss'), WandBLogger('first'), WandBLogger(), WandBLogger('second')]
    config = FitConfig.from_arguments(model='m', train_data='t', callbacks=callbacks)
    keep_secrets(config, tmp_path)
    assert stat.S_IMODE((tmp_path / SECRETS).stat().st_mode) == 0o600
    stored = FitConfig.from_arguments(**config.model_dump(mode='json'))
    tokens = [callback.options.token for callback in stored.callbacks[1:]]
    assert tokens == [None, None, None]
    restore_secrets(stored, tmp_path)
    tokens = [callback.options.token for callback in stored.callbacks[1:]]
    assert [token and token.get_secret_value() for token in tokens] == ['first', None, 'second']


def test_a_run_without_tokens_has_no_file(tmp_path):
    config = FitConfig.from_arguments(model='m', train_data='t', callbacks=[WandBLogger()])
    keep_secrets(config, tmp_path)
    restore_secrets(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
