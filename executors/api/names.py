"""Names in paths. What does not look like one of ours is refused at the door, before it reaches anything."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from executors.patterns import ALIAS, ARTIFACT, ID, NAME

ExperimentName = Annotated[str, Path(pattern=NAME, description='The name of an experiment.', examples=['support'])]
RunName = Annotated[str, Path(pattern=NAME, description='The name of a run.', examples=['first'])]
DatasetName = Annotated[str, Path(pattern=NAME, description='The name of a data set.', examples=['tickets'])]
AliasName = Annotated[str, Path(pattern=ALIAS, description='name@stage', examples=['support@production'])]
Id = Annotated[str, Path(pattern=ID, description='24 hexadecimal digits.', examples=['65a1f0c2b3d4e5f60718293a'])]
ArtifactName = Annotated[
    str,
    Path(
        pattern=ARTIFACT,
        description='The id of an artifact, or an alias of one, name@stage.',
        examples=['65a1f0c2b3d4e5f60718293a', 'support@production'],
    ),
]
