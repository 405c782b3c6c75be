"""HTTP around a session: who may ask, how much, and how errors are told.

The server listens on this machine alone. It still refuses requests whose Host or Origin is another: a page from
elsewhere, open in a browser on this machine, could otherwise ask it (DNS rebinding, cross-site requests).
"""

import functools
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pdiff.ask import exports
from pdiff.ask.serve.session import Session
from pdiff.errors import PdiffError
from pdiff.system.logs import log

MOST_BODY = 64 * 1024  # bytes
MOST_IMAGES_BODY = 2 * 1024 * 1024  # of a request with images
WAITING, PATIENCE = 3, 20.0  # requests that may wait for the one at work, and seconds that each does
HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Turn:
    """One request at work, at most WAITING waiting."""

    def __init__(self):
        self._places, self._work = threading.BoundedSemaphore(WAITING + 1), threading.Lock()

    @contextmanager
    def take(self):
        """Waits for its turn; raises _Refused where that would take too long."""
        with ExitStack() as held:
            for lock, patience in ((self._places, 0), (self._work, PATIENCE)):
                if not lock.acquire(timeout=patience):
                    raise _Refused(503, "busy: too many requests at once; try again in a moment")
                held.callback(lock.release)
            yield


class Application:
    """The WSGI application. `session` and `hosts`, the names that it answers to, are set before it is served."""

    def __init__(self):
        import bottle

        self.session: Session | None = None
        self.hosts: tuple[str, ...] = ()
        self._turn, self._bottle = Turn(), bottle
        self._app = bottle.Bottle()
        self._app.default_error_handler = lambda e: self._tell(e.status_code, e.body or e.status_line)
        for path, (name, kind) in FILES.items():
            self._app.route(path, "GET", self._guarded(functools.partial(self._file, name, kind)))
        self._app.route("/facts", "GET", self._guarded(lambda: self._json(self.session.facts())))
        self._app.route("/networks/<key:re:[0-9]+>.safetensors", "GET", self._guarded(self._download))
        self._app.route("/sample", "POST", self._guarded(lambda: self._work(self.session.sample)))
        self._app.route("/draw", "POST", self._guarded(lambda: self._work(self.session.draw)))
        self._app.route("/api/adapt", "POST", self._guarded(lambda: self._work(self.session.adapt, MOST_IMAGES_BODY)))

    def __call__(self, environ, start_response):
        return self._app(environ, start_response)

    def _guarded(self, answer: Callable) -> Callable:
        """`answer`, for requests that this page itself makes; errors become one line of JSON."""

        def guarded(**parts):
            try:
                self._check_source()
                return answer(**parts)
            except _Refused as e:
                return self._tell(e.status, str(e))
            except PdiffError as e:
                return self._tell(400, str(e))
            except Exception as e:
                log.error("%s %s", self._bottle.request.path, type(e).__name__, exc_info=e)
                return self._tell(500, f"{type(e).__name__}: an error of pdiff itself; its terminal says more")

        return guarded

    def _check_source(self) -> None:
        headers = self._bottle.request.headers
        host = headers.get("Host", "")
        if host not in self.hosts:
            raise _Refused(403, f"Host: got {host[:80]!r}; allowed: {', '.join(self.hosts)}")
        origin = headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.hosts]:
            raise _Refused(403, f"Origin: got {origin[:80]!r}; allowed: this page's own")
        if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise _Refused(403, "Sec-Fetch-Site: got a request from another site; allowed: this page's own")

    def _work(self, answer: Callable[[dict], dict], most: int = MOST_BODY):
        """`answer` to the JSON of the request's body, of at most so many bytes, when its turn comes."""
        request = self._body(most)
        with self._turn.take():
            return self._json(answer(request))

    def _body(self, most: int) -> dict:
        request = self._bottle.request
        if request.content_type.split(";")[0].strip() != "application/json":
            raise _Refused(415, f"Content-Type: got {request.content_type[:80]!r}; allowed: application/json")
        if request.content_length > most:
            raise _Refused(413, f"body: got {request.content_length} bytes; allowed: at most {most}")
        try:
            body = json.loads(request.body.read(most + 1), parse_constant=_no_constant)
        except (ValueError, RecursionError) as e:
            raise PdiffError("body: not JSON; allowed: a JSON object") from e
        if not isinstance(body, dict):
            raise PdiffError(f"body: got a {type(body).__name__}; allowed: a JSON object")
        return body

    def _file(self, name: str, kind: str):
        return self._respond(200, (HERE / name).read_bytes(), kind)

    def _download(self, key: str):
        answer = self.session.made(key)
        name = {"Content-Disposition": f'attachment; filename="networks_{key}.safetensors"'}
        data = exports.to_safetensors(exports.flat(answer.networks), answer.facts)
        return self._respond(200, data, "application/octet-stream", name)

    def _json(self, value: dict, status: int = 200):
        return self._respond(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _tell(self, status: int, message: str):
        return self._json({"error": " ".join(str(message).split())}, status)

    def _respond(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None):
        headers = HEADERS | {"Content-Type": kind} | (more or {})
        return self._bottle.HTTPResponse(body, status, {**headers, **({"Retry-After": "2"} if status == 503 else {})})


def _no_constant(name: str):
    raise ValueError(name)


def make_server(port: int) -> tuple[Any, Application, str]:
    """A waitress server on 127.0.0.1, its application, which lacks a session, and its address. Port 0 is any free one.

    Raises:
      PdiffError: the port is taken, or bottle or waitress is not installed.
    """
    try:
        import waitress

        application = Application()
    except ImportError as e:
        raise PdiffError(f"--mode=serve: {e.name} is not installed; install with: pip install -e '.[serve]'") from e
    try:
        server = waitress.create_server(
            application, host="127.0.0.1", port=port, threads=WAITING + 3, ident=None, connection_limit=50,
            channel_timeout=30, max_request_header_size=16 * 1024, max_request_body_size=2 * MOST_IMAGES_BODY,
        )  # fmt: skip
    except OSError as e:
        raise PdiffError(f"--port: got {port}: {e.strerror}; allowed: a free port") from e
    application.hosts = tuple(f"{name}:{server.effective_port}" for name in ("localhost", "127.0.0.1", "[::1]"))
    return server, application, f"http://{application.hosts[0]}"
