"""An executor that is told its name takes the loggers of this process: they are given back after each test."""

import logging

import pytest

from executors.log_records import PACKAGES


@pytest.fixture(autouse=True)
def loggers_as_before():
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in PACKAGES}
    yield
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(level)
