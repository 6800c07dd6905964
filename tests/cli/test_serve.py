"""The server of examples/serve.py gives what `Model.recommend` gives, and says what is wrong with a request."""

import json
import runpy
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from lrec.model.config import TransformerConfig
from lrec.model.transformer import Transformer
from lrec.serving.recommender import Model

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(20, 5, 1, 8, 1)).eval()
    return Model(net, pl.Series([f"SKU-{item}" for item in range(20)]), {}, np.arange(1, 21))


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    service = runpy.run_path(str(EXAMPLE))["server"](model, 0)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}"
    service.shutdown()
    thread.join()
    service.server_close()


def ask(address: str, body: bytes | None) -> tuple[int, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, data=body, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_the_lists_are_those_of_the_model(model: Model, address: str) -> None:
    histories = [["SKU-1", "SKU-7"], ["SKU-3"], ["nothing known"]]
    status, rows = ask(address, json.dumps({"histories": histories, "k": 4, "exclude": ["SKU-2"]}).encode())
    assert status == 200
    expected = model.recommend(histories, k=4, exclude=["SKU-2"])
    assert [row["items"] for row in rows] == expected["items"].to_list()
    assert [row["fallback"] for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"not JSON", "the body is no JSON (Expecting value: line 1 column 1 (char 0)): send an object such as {"),
        (b"{}", "histories"),
        (b"[1]", "must be a mapping"),
        (b"[" * 100_000, "the body is no JSON"),
        (b'{"histories": 3}', "expected"),
        (b'{"histories": [{"history": ["SKU-1"]}]}', "a list of lists is expected"),
        (b'{"histories": [{"items": ["SKU-1"]}, ["SKU-1"]]}', "a list of lists is expected"),
        (b'{"histories": [[["SKU-1"]]]}', "a list of lists is expected, of raw ids, not ['SKU-1']"),
        (b'{"histories": [["SKU-1"]], "k": 0}', "k must be at least 1"),
        (b'{"histories": [["SKU-1"]], "path": "/"}', "path"),
    ],
)
def test_a_wrong_request_is_answered_with_the_reason(body: bytes, says: str, address: str) -> None:
    status, reply = ask(address, body)
    assert status == 400
    assert says in reply["error"]
    assert ask(address, b'{"histories": [["SKU-1"]]}')[0] == 200, "and the next one is served"


def test_a_get_request_is_told_what_to_post(address: str) -> None:
    status, reply = ask(address, None)
    assert status == 405
    assert reply["error"].startswith('POST a JSON object such as {"histories"')


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: -1", "Content-Length: many"])
def test_a_request_of_unknown_length_is_refused(length: str, address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST / HTTP/1.1\r\n{length}\r\n\r\n".encode())
        assert client.makefile().readline().split()[1] == "411"


def test_many_clients_at_once_are_all_answered(model: Model) -> None:
    service = runpy.run_path(str(EXAMPLE))["server"](model, 0)
    with service, ThreadPoolExecutor(40) as pool:
        address, body = f"http://127.0.0.1:{service.server_port}", b'{"histories": [["SKU-1"]]}'
        replies = [pool.submit(ask, address, body) for _ in range(40)]
        time.sleep(0.2)  # all of them wait before the server accepts the first
        threading.Thread(target=service.serve_forever).start()
        try:
            assert {reply.result()[0] for reply in replies} == {200}
        finally:
            service.shutdown()


def test_an_incomplete_request_keeps_nobody_waiting(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)  # now the server is waiting for the rest
        assert ask(address, b'{"histories": [["SKU-1"]]}')[0] == 200
