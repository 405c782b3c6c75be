"""One session and one server for all tests of the page."""

import threading

import pytest

from pdiff.ask.serve.app import make_server
from pdiff.ask.serve.session import Session


@pytest.fixture(scope="session")
def session(loaded):
    return Session(loaded)


@pytest.fixture(scope="session")
def application(session):
    """The application, served on a free port of this machine at `application.address`."""
    server, application, application_address = make_server(0)
    application.session, application.address = session, application_address
    threading.Thread(target=server.run, daemon=True).start()
    return application
