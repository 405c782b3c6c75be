"""An interactive page on this machine: ask a trained generator, see the networks answer on images."""

import signal
from contextlib import closing, suppress
from pathlib import Path

from pdiff.ask import api
from pdiff.ask.serve.app import make_server
from pdiff.ask.serve.session import Session
from pdiff.system import logs
from pdiff.system.logs import log


def serve(workdir: Path | None, port: int) -> None:
    """Serves the page for a run, a published folder or, without either, the generator of the package, until Ctrl-C.

    Raises:
      PdiffError: there is no trained generator, a package of the extra `serve` is missing, or the port is taken.
    """
    logs.set_up()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a script started it in the background
    server, application, address = make_server(port)  # first, so that a port that is taken is said at once
    with closing(server), suppress(KeyboardInterrupt):  # which may come before the server runs
        application.session = Session(api.load(workdir))
        log.info("%s is ready; Ctrl-C ends it", address)
        server.run()  # returns after Ctrl-C
    log.info("ended")
