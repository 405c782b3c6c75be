"""What several tests of the page share, since drawing takes most of their time."""

import json

import pytest

from pdiff.report import figures
from tests.report import synthetic


@pytest.fixture(scope="session")
def drawn():
    """All figures of `synthetic`, as they are drawn from files, whose keys are sorted."""
    results, closeup = (json.loads(json.dumps(x, sort_keys=True)) for x in (synthetic.results(), synthetic.closeup()))
    return figures.figures(results, synthetic.metrics(), closeup)
