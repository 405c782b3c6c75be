"""HTTP: only this machine's page is answered, within bounds, and every error is one line of JSON."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pdiff.ask.serve import app
from pdiff.errors import PdiffError

PROMPT = "digits rotated by 75 degrees"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def ask(application):
    host = application.address.removeprefix("http://")

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", int(host.split(":")[1]), timeout=60)
        headers = {"Host": host} | {k.replace("_", "-"): v for k, v in headers.items()}
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json"} | headers
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()

    return ask


def error_of(answer, status):
    response, body = answer
    assert response.status == status and response.headers["Content-Type"] == "application/json"
    said = json.loads(body)
    assert set(said) == {"error"} and "\n" not in said["error"] and "Traceback" not in said["error"]
    return said["error"]


def test_the_page_asks_nothing_of_others(ask):
    for path in ("/", "/page.css", "/page.js"):
        response, body = ask("GET", path)
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in body
        assert response.headers["Server"] is None


def test_networks_are_sampled_and_downloaded(ask, loaded):
    response, body = ask("POST", "/sample", {"prompt": PROMPT, "num_samples": 2, "seed": 3})
    made = json.loads(body)
    assert response.status == 200 and made["prompt"] == PROMPT and made["seconds"] < 5
    response, body = ask("GET", f"/networks/{made['id']}.safetensors")
    assert response.headers["Content-Disposition"].endswith('.safetensors"')
    kernel = safetensors.numpy.load(body)["params/Dense_0/kernel"]
    expected = loaded.sample(prompt=PROMPT, num_samples=2, seed=3)["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, expected)
    assert "sample again" in error_of(ask("GET", "/networks/999999.safetensors"), 400)


def test_a_network_is_adapted_and_downloaded(ask, loaded):
    images = loaded.family.data["train"]
    body = {"images": np.clip(images.x[:64], 0, 1).tolist(), "labels": images.y[:64].tolist(), "num_samples": 4}
    assert len(json.dumps(body)) < app.MOST_IMAGES_BODY
    response, said = ask("POST", "/api/adapt", body)
    made = json.loads(said)
    assert response.status == 200 and len(made["images"]) == 64
    response, data = ask("GET", f"/networks/{made['id']}.safetensors")
    assert safetensors.numpy.load(data)["params/Dense_0/kernel"].shape[0] == 1
    assert "images: got 0" in error_of(ask("POST", "/api/adapt", {"images": []}), 400)
    assert error_of(ask("GET", "/api/adapt"), 405)
    large = b'{"prompt": "' + b"x" * app.MOST_IMAGES_BODY + b'"}'
    refused = ask("POST", "/api/adapt", large, Content_Type="application/json")
    assert "allowed: at most 2097152" in error_of(refused, 413)


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Host": "localhost"}, {"Host": ""}, {"Origin": "http://evil.example"},
                {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}],
)  # fmt: skip
@pytest.mark.parametrize("method, path", [("GET", "/"), ("GET", "/facts"), ("POST", "/sample"), ("POST", "/api/adapt")])
def test_other_hosts_and_origins_are_refused(ask, method, path, headers):
    body = {"prompt": PROMPT} if method == "POST" else None
    assert "allowed" in error_of(ask(method, path, body, **headers), 403)


def test_the_page_s_own_origin_is_answered(ask, application):
    response, _ = ask("POST", "/sample", {"prompt": PROMPT}, Origin=application.address, Sec_Fetch_Site="same-origin")
    assert response.status == 200


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/sample", 405), ("PUT", "/sample", 405), ("POST", "/", 405), ("DELETE", "/facts", 405),
     ("GET", "/nothing", 404), ("GET", "/../pyproject.toml", 404), ("GET", "/networks/..%2f..%2fx.safetensors", 404)],
)  # fmt: skip
def test_other_methods_and_paths_are_refused(ask, method, path, status):
    assert error_of(ask(method, path), status)


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"seed": NaN, "prompt": "a"}', 400, "not JSON"),
        (b"[" * 30000, 400, "not JSON"),
        (b"[1]", 400, "got a list"),
        (b"", 400, "not JSON"),
        (b'{"prompt": "order a pizza"}', 400, "prompt: 'order a pizza'"),
        (b'{"prompt": "?"}', 400, "which has no word in it"),
        (b'{"prompt": "?", "force": true}', 400, "which has no word in it"),
        (b'{"prompt": "  "}', 400, "which has no word in it"),
        (b'{"__proto__": 1}', 400, "unknown field"),
        (b'{"factors": [1' + b"0" * 400 + b"]}", 400, "allowed: 1 numbers"),
        (b'{"factors": [1e999]}', 400, "allowed: 1 numbers"),
        (b'{"task": "x", "seed": 1' + b"0" * 400 + b"}", 400, "allowed: 0 to 2147483647"),
        (b'{"prompt": "digits \\ud800", "force": true}', 400, "no text in Unicode"),
        (b'{"prompt": "' + b"x" * 70000 + b'"}', 413, "at most 65536"),
    ],
)
def test_bad_bodies_are_refused(ask, body, status, message):
    assert message in error_of(ask("POST", "/sample", body, Content_Type="application/json"), status)


def test_bodies_of_another_type_are_refused(ask):
    """What a form or a script on another site can send without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert "allowed: application/json" in error_of(ask("POST", "/sample", b"{}", Content_Type=kind), 415)


def test_one_works_a_few_wait_and_the_rest_are_told_to_come_again(ask, application, monkeypatch):
    gate, answers = threading.Event(), []
    real = application.session.sample

    def slow(request):
        gate.wait(30)
        return real(request)

    monkeypatch.setattr(application.session, "sample", slow)

    def one():
        answers.append(ask("POST", "/sample", {"prompt": PROMPT, "num_samples": 1}))

    threads = [threading.Thread(target=one) for _ in range(app.WAITING + 1)]
    for thread in threads:
        thread.start()
    deadline = time.time() + 20
    while application._turn._places._value and time.time() < deadline:
        time.sleep(0.01)
    response, body = ask("POST", "/sample", {"prompt": PROMPT})
    assert "busy" in error_of((response, body), 503) and response.headers["Retry-After"]
    assert ask("GET", "/")[0].status == 200  # reading goes on
    gate.set()
    for thread in threads:
        thread.join()
    assert [response.status for response, _ in answers] == [200] * (app.WAITING + 1)


def test_who_waits_too_long_is_told_so(monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 0.05)
    turn = app.Turn()
    with turn.take(), pytest.raises(app._Refused, match="busy"), turn.take():
        pass
    with turn.take():  # and has left no place taken
        pass


def test_a_fault_of_ours_is_one_line_too(ask, application, monkeypatch):
    monkeypatch.setattr(application.session, "facts", lambda: 1 / 0)
    assert "ZeroDivisionError" in error_of(ask("GET", "/facts"), 500)


def test_a_port_that_is_taken_is_said(application):
    port = int(application.address.rsplit(":", 1)[1])
    with pytest.raises(PdiffError, match=f"--port: got {port}: Address already in use"):
        app.make_server(port)


def test_control_c_ends_the_command_cleanly(published_folder):
    """Takes 10 s: a process of its own compiles its programs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pdiff.main", "--mode=serve", f"--workdir={published_folder}", f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    lines = []
    try:
        while "is ready" not in "".join(lines):
            lines.append(process.stderr.readline())
            assert process.poll() is None, lines
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in rest and rest.splitlines()[-1] == "pdiff: ended"
    assert f"http://localhost:{port} is ready" in lines[-1]
