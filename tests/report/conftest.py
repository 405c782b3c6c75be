"""What several tests of the page share, since drawing takes most of their time."""

import pytest

from pdiff.report import figures
from tests.report import synthetic


@pytest.fixture(scope="session")
def drawn():
    """All figures of `synthetic`."""
    return figures.figures(synthetic.results(), synthetic.metrics(), synthetic.closeup())
