"""What became of one request, stage by stage, for whoever watches it."""

from __future__ import annotations

QUEUE, PREPROCESS, RUN, SHARE, ANSWER = 'queue', 'preprocess', 'run', 'share', 'answer'


class Watch:
    """Notes nothing. Its methods are called from the event loop of the request."""

    def stage(self, name: str, began: float, ended: float, items: int) -> None:
        """A stage has ended, well or not. Of a large request each occurs several times, and they overlap.

        ========== ==========================================================================================
        preprocess items were tokenized or decoded
        queue      they waited for the model
        run        the model computed them, in one batch or several, and other requests between these
        share      they waited for another request that computed the same
        answer     the documents of the answer were made
        ========== ==========================================================================================

        :param began: by `time.monotonic()`.
        :param ended: the same.
        """

    def note(self, **attributes: str | int) -> None:
        """Something is known of the request as a whole, such as `artifact`."""


NOBODY = Watch()
