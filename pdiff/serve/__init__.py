"""An interactive page on this machine: ask a trained generator, see the networks answer on images."""

import signal
from pathlib import Path

from pdiff import api, logs
from pdiff.logs import log
from pdiff.serve.app import make_server
from pdiff.serve.session import Session


def serve(workdir: Path | None, port: int) -> None:
    """Serves the page for a run, a published folder or, without either, the generator of the package, until Ctrl-C.

    Raises:
      PdiffError: there is no trained generator, a package of the extra `serve` is missing, or the port is taken.
    """
    logs.set_up()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a script started it in the background
    server, application, address = make_server(port)  # first, so that a port that is taken is said at once
    try:
        application.session = Session(api.load(workdir))
        log.info("%s is ready; Ctrl-C ends it", address)
        server.run()  # returns after Ctrl-C
    except KeyboardInterrupt:  # which may come before that
        pass
    finally:
        server.close()
    log.info("ended")
