"""Names for runs that were given none, easy to say and to tell apart, and for the data of runs."""

from __future__ import annotations

import hashlib
import secrets

from finetuner.constants import DA_PREFIX

KINDS = ('train', 'eval', 'query', 'index')
MAX_NAME = 200  # the longest name of a data set

ADJECTIVES = """
    able amber ample apt arctic ardent azure balmy bold brave breezy bright brisk bronze calm candid cedar cheery
    civil clear clever cosy crisp curious dapper daring deft dewy eager early earnest easy elder fair fast fearless
    festive fine fleet fond frank fresh gentle gilded glad golden grand green happy hardy hazel honest humble ideal
    indigo ivory jade jolly keen kind lively loyal lucid lucky lunar mellow merry mighty mild misty modest neat nimble
    noble novel olive opal patient placid plucky polar proud quick quiet rapid rosy royal rustic sage serene sharp
    silver sleek snowy solar solid sonic spry stark steady stellar sturdy sunny swift tidy topaz tranquil true upbeat
    velvet verdant vivid warm wise witty zesty
""".split()  # noqa: SIM905
NOUNS = """
    acorn anchor aspen badger bamboo basin beacon birch bison bramble breeze brook canyon cedar cloud clover comet
    compass condor coral cove crane creek cricket delta dune eagle ember falcon fern finch fjord forest fossil fox
    garden geyser glacier grove gull harbor hare harvest hawk hazel heath heron hill inlet iris island ivy jasper
    juniper kestrel lagoon lake lantern lark laurel lichen lily linden lotus lynx maple marsh marten meadow meteor
    moor moss mountain nebula oak oasis ocean orchard orchid osprey otter owl palm pebble pine plover pond poplar
    prairie puffin quail quartz rain raven reef ridge river robin rowan sable salmon seal sequoia shore sparrow spring
    spruce star stone stork summit swan thicket thistle tide trail trout tulip tundra valley walnut willow wren
""".split()  # noqa: SIM905


def random_name() -> str:
    """Such as 'brisk-heron'."""
    return f'{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}'


def dataset_name(experiment_name: str, run_name: str, kind: str) -> str:
    """The name of a run's uploaded data: `finetuner-dastorage-EXPERIMENT-RUN-KIND`.

    Where that could mean another run too, as the experiment has a hyphen, or is too long, it is cut and gets a hash.

    :param kind: one of :data:`KINDS`, or one with a number, as in 'query-2'.
    """
    name = f'{DA_PREFIX}-{experiment_name}-{run_name}-{kind}'
    if '-' not in experiment_name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(f'{experiment_name}\0{run_name}\0{kind}'.encode()).hexdigest()[:16]
    return f'{name[: MAX_NAME - 17]}-{digest}'
