"""The server answers what the detector says, whatever else it is sent."""

import base64
import csv
import io
import json
import signal
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from conftest import metrics_of
from PIL import Image
from servers import RATE, pictures, png, running

import adbench
from adbench.detection.maps import read_map
from adbench.detection.prediction import Options, predict
from adbench.serve import main
from adbench.types import UserError

pytest.importorskip("fastapi")

from adbench.serving.server import create_service
from adbench.serving.worker import Full, Worker

FILES = pictures(6)
TOLERANCE = 1e-6  # relative: convolutions and products of matrices round by the size of a batch


def post(client, *files, **query):
    return client.post(
        "/score", files=[("image", (f"{k}.png", f, "image/png")) for k, f in enumerate(files)], params=query
    )


def scored(detector, files):
    return detector([Image.open(io.BytesIO(file)) for file in files], RATE)


# -- answers ------------------------------------------------------------------------------------------------------


def test_the_answers_are_those_of_predict(client, trained, data_root, tmp_path):
    folder = data_root / "mvtec/bottle/test"
    predict(trained, [folder], Options(tmp_path, RATE))
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for at in range(0, len(rows), 3):
        here = rows[at : at + 3]
        answer = post(client, *[open(row["path"], "rb").read() for row in here]).json()  # noqa: PTH123, SIM115
        assert (answer["method"], answer["data"], answer["false_alarm_rate"]) == ("pca", "mvtec/bottle", RATE)
        for row, result in zip(here, answer["results"], strict=True):
            assert result["score"] == pytest.approx(float(row["score"]), rel=TOLERANCE)
            assert result["decision"] == row["decision"]
            assert result["anomalous"] == (row["decision"] == "anomalous")
            assert result["p_value"] == pytest.approx(float(row["p_value"]), rel=1e-5)
            assert result["threshold"] == pytest.approx(float(row["threshold"]), rel=1e-8)
    assert {row["decision"] for row in rows} == {"anomalous", "normal"}


def test_an_exported_graph_answers_over_http_what_the_run_answers(client, trained, tmp_path):
    pytest.importorskip("onnxruntime")
    from adbench.detection.graph import export

    graph, _ = export(trained, out=tmp_path / "m.onnx")
    with running(create_service(graph, false_alarm_rate=RATE)) as address:
        found = post(httpx.Client(base_url=address), *FILES[:4]).json()["results"]
    for one, other in zip(found, post(client, *FILES[:4]).json()["results"], strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert one["decision"] == other["decision"]


def test_a_raw_body_is_one_image_and_several_files_are_several(client, detector):
    wanted = scored(detector, FILES[:3])
    several = post(client, *FILES[:3]).json()["results"]
    assert [r["score"] for r in several] == pytest.approx(wanted.image.tolist(), rel=TOLERANCE)
    assert [r["name"] for r in several] == ["0.png", "1.png", "2.png"]
    for kind in ("image/png", "image/*", "application/octet-stream"):
        (single,) = client.post("/score", content=FILES[1], headers={"Content-Type": kind}).json()["results"]
        assert single["score"] == pytest.approx(float(wanted.image[1]), rel=TOLERANCE)
        assert (single["width"], single["height"]) == Image.open(io.BytesIO(FILES[1])).size


@pytest.mark.parametrize(("query", "keys"), [
    ({}, set()), ({"map": "none"}, set()), ({"map": "png"}, {"map"}), ({"map": "overlay"}, {"overlay"}),
    ({"map": "both"}, {"map", "overlay"}),
])  # fmt: skip
def test_maps_come_when_they_are_asked_for(client, detector, tmp_path, query, keys):
    (result,) = post(client, FILES[0], **query).json()["results"]
    assert {key for key in ("map", "overlay") if result[key] is not None} == keys
    if "map" in keys:
        (tmp_path / "m.png").write_bytes(base64.b64decode(result["map"]))
        wanted = scored(detector, FILES[:1]).maps[0, 0].numpy()
        np.testing.assert_allclose(read_map(tmp_path / "m.png"), wanted, atol=np.ptp(wanted) / 1e4)
    if "overlay" in keys:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["overlay"]))).convert("RGB")).astype(int)
        assert picture.shape[:2] == (result["height"], result["width"])
        colour = picture.max(axis=-1) - picture.min(axis=-1)
        assert colour[6:13, 9:19].mean() > 3 * colour[20:].mean()  # at the bright square


def test_health_says_what_is_served(client, detector):
    health = client.get("/health").json()
    assert health["ready"] is True
    assert (health["method"], health["data"], health["image_size"], health["maps"]) == (
        "pca",
        "mvtec/bottle",
        [32, 32],
        True,
    )
    assert health["threshold"] == detector.threshold(RATE)["value"]
    assert health["busy"] == 0


def test_the_description_of_the_interface_names_the_bodies_the_pictures_and_the_refusals(client):
    description = client.get("/openapi.json").json()
    score = description["paths"]["/score"]["post"]
    assert set(score["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert description["components"]["schemas"]["Maps"]["enum"] == ["none", "png", "overlay", "both"]
    assert set(score["responses"]) == {"200", "400", "408", "413", "415", "422", "500", "503"}
    assert "/health" in description["paths"]


# -- what is no image -----------------------------------------------------------------------------------------------


def bomb():
    """A PNG of a few kilobytes with 64 million pixels."""
    return png(np.zeros((8000, 8000), np.uint8))


def archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.png", FILES[0])
    return content.getvalue()


GARBAGE = {
    "nothing": (b"", 400, "is empty"),
    "a text": (b"no image at all\n", 422, "cannot be read as an image"),
    "a page": (b"<html><script>alert(1)</script></html>", 422, "cannot be read as an image"),
    "a truncated image": (FILES[0][:700], 422, "cannot be read as an image"),
    "the head of an image": (FILES[0][:24], 422, "cannot be read as an image"),
    "an archive": (archive(), 422, "cannot be read as an image"),
    "noise": (np.random.default_rng(0).bytes(5000), 422, "cannot be read as an image"),
    "a decompression bomb": (bomb(), 413, "more than 1,000,000 pixels"),
    "too many bytes": (bytes(400_000), 413, "larger than 300,000 bytes"),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("form", [True, False])
def test_what_is_no_image_gets_one_sentence(client, service, name, form):
    content, status, message = GARBAGE[name]
    if form:
        response = post(client, content)
    else:
        response = client.post("/score", content=content, headers={"Content-Type": "image/png"})
    assert response.status_code == status
    sentence = response.json()["detail"]
    assert message in sentence
    assert "\n" not in sentence and "Traceback" not in sentence and "/tmp" not in sentence
    assert service.worker.busy == 0


def chunks(content, size=10_000):
    for first in range(0, len(content), size):
        yield content[first : first + size]


@pytest.mark.parametrize(("request_", "status", "message"), [
    ({"content": FILES[0], "headers": {"Content-Type": "text/plain"}}, 415, "of type text/plain"),
    ({"content": FILES[0], "headers": {"Content-Type": "application/json"}}, 415, "multipart/form-data"),
    ({"data": {"image": "x"}}, 415, "of type application/x-www-form-urlencoded"),
    ({"content": FILES[0]}, 415, "of type unknown"),
    ({}, 415, "of type unknown"),
    ({"content": FILES[0], "headers": {"Content-Type": "image/png", "Content-Encoding": "gzip"}}, 415, "compressed"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "form"),
    ({"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "holds no file"),
    ({"files": {"image": (None, "only words")}}, 400, "holds no file"),
    ({"files": [("image", ("a.png", FILES[0]))] * 5}, 413, "4 images at most"),
    ({"files": [("image", ("a.png", FILES[0])), ("image", ("\x1b[31mb.png", b"words"))]}, 422, "cannot be read"),
    ({"content": chunks(bytes(400_000)), "headers": {"Content-Type": "image/png"}}, 413, "larger than"),
    ({"content": chunks(bytes(9_000_000)), "headers": {"Content-Type": "image/png"}}, None, "larger than"),
    ({"files": {"image": ("a.png", FILES[0])}, "params": {"map": "rainbow"}}, 422, "map=rainbow is not possible"),
])  # fmt: skip
def test_a_request_that_cannot_be_answered_gets_one_sentence(client, service, request_, status, message):
    try:
        response = client.post("/score", **request_)
    except httpx.TransportError:
        assert status is None  # so much that the server hung up
    else:
        assert status in (None, response.status_code)
        sentence = response.json()["detail"]
        assert message in sentence and "\n" not in sentence and "\x1b" not in sentence
    assert service.worker.busy == 0
    assert post(client, FILES[0]).status_code == 200


@pytest.mark.parametrize(("verb", "path", "status"), [
    ("GET", "/score", 405), ("POST", "/", 405), ("GET", "/nothing", 404), ("DELETE", "/health", 405),
    ("GET", "/pages/score.html", 404), ("GET", "/..%2f..%2fetc/passwd", 404),
])  # fmt: skip
def test_other_addresses_name_those_that_there_are(client, verb, path, status):
    response = client.request(verb, path)
    assert response.status_code == status
    assert "POST /score" in response.json()["detail"]


def half_a_request(address):
    """A connection that has sent the head of a request and three bytes of a thousand."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc")
    return connection


def test_a_body_that_does_not_come_is_waited_for_only_so_long(detector):
    service = create_service_of(detector, places=3, seconds=0.3)
    with running(service) as address:
        with half_a_request(address) as slow:
            answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert service.worker.busy == 0


def test_a_client_that_goes_away_leaves_no_place_taken(address, service, client):
    with half_a_request(address):
        wait_for(lambda: service.worker.busy == 1)
    wait_for(lambda: service.worker.busy == 0)
    assert post(client, FILES[0]).status_code == 200


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_image_is_scored_or_refused_and_never_an_error_of_the_server(client, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(FILES[seed % len(FILES)])
    for at in rng.integers(8, len(content), 6):
        content[at] = rng.integers(256)
    assert post(client, bytes(content)).status_code in (200, 413, 422)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- batches --------------------------------------------------------------------------------------------------------


class Held:
    """An engine that waits until it may score, notes its batches' sizes, and fails on an image of brightness 77."""

    def __init__(self, engine):
        self.engine, self.may = engine, threading.Event()
        self.sizes = []

    def prepare(self, image):
        return self.engine.prepare(image)

    def score(self, rows):
        self.may.wait(20)
        self.sizes.append(len(rows))
        if any((row == 77).all() for row in rows):
            raise RuntimeError("a secret of the server")
        return self.engine.score(rows)


@pytest.fixture
def held(trained):
    """(detector, engine): the engine waits for `engine.may`."""
    made = adbench.load(trained)
    made.engine = Held(made.engine)
    yield made, made.engine
    made.engine.may.set()


def test_images_that_wait_are_scored_together_and_each_gets_its_own_score(held, detector, tmp_path):
    waiting, engine = held
    files = []
    for k, content in enumerate(pictures(30)):
        files.append(tmp_path / f"{k}.png")
        files[-1].write_bytes(content)
    worker = Worker(waiting, max_batch=8)
    worker.start()
    answers = [worker.submit(path) for path in files]
    engine.may.set()
    found = torch.tensor([answer.result(20).score for answer in answers])
    worker.stop()
    assert sum(engine.sizes) == 30 and max(engine.sizes) == 8 and len(engine.sizes) <= 5
    torch.testing.assert_close(found, torch.cat([detector.score(path).image for path in files]), rtol=TOLERANCE, atol=0)


def test_an_image_that_the_detector_fails_on_fails_alone(held, tmp_path, caplog):
    waiting, engine = held
    service = create_service_of(waiting, places=8)
    with running(service) as address, httpx.Client(base_url=address, timeout=20) as client:
        with ThreadPoolExecutor(4) as pool:
            bad = png(np.full((32, 32, 3), 77, np.uint8))
            answers = [pool.submit(post, client, content) for content in (FILES[0], bad, FILES[1], FILES[2])]
            wait_for(lambda: service.worker.busy == 4)
            engine.may.set()
        codes = [answer.result().status_code for answer in answers]
        assert codes == [200, 500, 200, 200]
        assert answers[1].result().json() == {"detail": "0.png could not be scored; the server's log says why"}
    assert "a secret of the server" in caplog.text


def create_service_of(detector, places, max_batch=4, seconds=60.0):
    from adbench.serving.app import Service
    from adbench.serving.uploads import Limits

    worker = Worker(detector, max_batch, places)
    worker.start()
    return Service(detector, worker, detector.threshold(RATE), Limits(max_images=places, seconds=seconds), maps=True)


def test_a_full_queue_answers_503_with_a_time_and_goes_on_afterwards(held):
    waiting, engine = held
    service = create_service_of(waiting, places=3)
    with running(service) as address, httpx.Client(base_url=address, timeout=20) as client:
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(post, client, content) for content in FILES[:3]]
            wait_for(lambda: service.worker.busy == 3)
            for files in (FILES[3:4], [png(np.zeros((1500, 1500, 3), np.uint8))], FILES[:2]):
                refusal = post(client, *files)
                assert refusal.status_code == 503
                assert int(refusal.headers["Retry-After"]) >= 1
                assert "all 3 places are taken" in refusal.json()["detail"]
            assert client.get("/health").json()["busy"] == 3
            engine.may.set()
            assert [answer.result().status_code for answer in answers] == [200] * 3
        assert post(client, *FILES[:3]).status_code == 200
        assert service.worker.busy == 0


def test_several_images_take_as_many_places_or_none(held):
    worker = Worker(held[0], capacity=3)
    worker.take(2)
    with pytest.raises(Full):
        worker.take(2)
    worker.take(1)
    worker.free(3)
    assert worker.busy == 0


# -- a process of its own -------------------------------------------------------------------------------------------


def test_a_hundred_requests_at_once_get_the_scores_of_the_detector(process, detector):
    files = pictures(100)
    process.hold.touch()
    with httpx.Client(base_url=process.address, timeout=60, limits=httpx.Limits(max_connections=100)) as client:
        with ThreadPoolExecutor(100) as pool:
            answers = [pool.submit(post, client, content) for content in files]
            wait_for(lambda: client_health(process)["busy"] == 100, 40)
            process.hold.unlink()
        results = [answer.result().json()["results"][0] for answer in answers]
    wanted = scored(detector, files)
    assert [r["score"] for r in results] == pytest.approx(wanted.image.tolist(), rel=TOLERANCE)
    assert [r["anomalous"] for r in results] == wanted.anomalous.tolist()
    sizes = [int(line) for line in process.sizes.read_text().split()]
    assert sum(sizes) >= 100 and max(sizes) == 16


def client_health(process):
    return httpx.get(f"{process.address}/health", timeout=20).json()


def test_sigterm_answers_what_is_in_flight_refuses_what_comes_and_exits_with_0(process, detector):
    files = pictures(5)
    process.hold.touch()
    with httpx.Client(base_url=process.address, timeout=60) as client:
        with ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(post, client, content, map="overlay") for content in files]
            wait_for(lambda: client_health(process)["busy"] == 5)
            process.child.send_signal(signal.SIGTERM)
            wait_for(lambda: refused(process.address))
            assert process.child.poll() is None
            process.hold.unlink()
        results = [answer.result().json()["results"][0] for answer in answers]
    assert [r["score"] for r in results] == pytest.approx(scored(detector, files).image.tolist(), rel=TOLERANCE)
    assert all(r["overlay"] for r in results)
    code, error = process.end()
    assert code == 0
    assert "Traceback" not in error


def refused(address):
    try:
        httpx.get(f"{address}/health", timeout=1)
    except httpx.TransportError:
        return True
    return False


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    (("/nowhere/run",), "there is no /nowhere/run"),
    (("MODEL", "--false-alarm-rate", "2"), "must lie in (0, 1)"),
    (("MODEL", "--device", "nonsense"), "device nonsense cannot be used: this machine has cpu"),
    (("MODEL", "--port", "TAKEN"), "choose another --host or --port"),
    (("MODEL", "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
])  # fmt: skip
def test_what_a_user_gets_wrong_is_one_message(trained, capsys, arguments, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        places = {"MODEL": str(trained), "TAKEN": str(taken.getsockname()[1])}
        line = [places.get(argument, argument) for argument in arguments]
        assert main([*line, *(["--port", "0"] if "--port" not in line else [])]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--queue", "0"), ("--max-batch", "many")])
def test_an_option_out_of_range_is_refused(trained, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(trained), *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart"])
def test_without_the_extra_one_message_says_how_to_install_it(trained, capsys, monkeypatch, package):
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(trained)]) == 1
    assert capsys.readouterr().err == f'error: the server needs {package}: pip install "adbench-vision[serve]"\n'


def test_a_detector_of_tables_is_not_served(finished, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", X=rng.normal(size=(90, 4)).astype(np.float32), y=np.arange(90) % 5 == 0)
    folder = finished("method=kde", "data=tabular", "data.name=t", f"data.file={tmp_path / 't.npz'}", "data.features=4")
    assert metrics_of(folder)["status"] == "finished"
    with pytest.raises(UserError, match="takes rows of a table"):
        create_service(folder)


class Mapless(Held):
    """An engine of a method without maps."""

    def score(self, rows):
        return self.engine.score(rows)._replace(maps=None)


def test_a_method_without_maps_is_served_without_them(trained):
    made = adbench.load(trained)
    made.engine = Mapless(made.engine)
    with running(create_service_of(made, places=2)) as address:
        (result,) = post(httpx.Client(base_url=address), FILES[0], map="both").json()["results"]
    assert result["score"] is not None and result["map"] is None and result["overlay"] is None


def test_a_data_set_whose_name_is_no_text_is_served(trained):
    made = adbench.load(trained)
    made.card["data"] = "own/caf\udce9"
    with running(create_service_of(made, places=2)) as address, httpx.Client(base_url=address) as client:
        for answer in (client.get("/health"), client.get("/openapi.json"), post(client, FILES[0])):
            assert answer.status_code == 200 and "caf" in answer.text
    repr(made).encode()


def test_a_score_that_is_no_number_is_an_alarm_without_a_number(service):
    from pathlib import Path

    from adbench.serving.app import Maps
    from adbench.serving.uploads import Upload
    from adbench.serving.worker import Answer

    result = service.result(Upload("x", Path("x")), Answer(float("nan"), None, None, (3, 4)), Maps.NONE)
    assert result.anomalous is True and result.score is None
    json.dumps(result.model_dump(), allow_nan=False)
