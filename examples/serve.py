"""Recommendations over HTTP from a trained run, with Python's own server; see docs/recommend.md.

python serve.py runs/first 8000
curl localhost:8000 --data '{"histories": [["SKU-0001", "SKU-0007"]], "k": 5}'
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import lrec
from lrec.serving.recommender import Model

EXAMPLE = '{"histories": [["SKU-0001", "SKU-0007"]], "k": 5}'


def answer(model: Model, body: bytes) -> tuple[int, str]:
    """Status and JSON for a request. Its keys are the arguments of Model.recommend: histories, k, exclude, ..."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as wrong:
        return 400, json.dumps({"error": f"the body is no JSON ({wrong}): send an object such as {EXAMPLE}"})
    try:
        return 200, model.recommend(**request).write_json()
    except (ValueError, TypeError) as wrong:
        return 400, json.dumps({"error": str(wrong)})


def server(model: Model, port: int) -> ThreadingHTTPServer:
    """A server on this machine. Port 0 takes any free port. Each client has its own thread, so a slow client does not
    block the others. The model answers one request at a time."""
    one_at_a_time = Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds to wait for the rest of a request

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                self.reply(411, json.dumps({"error": "a request needs its Content-Length, a number of bytes"}))
                return
            body = self.rfile.read(int(length))
            with one_at_a_time:
                status, text = answer(model, body)
            self.reply(status, text)

        def do_GET(self) -> None:
            self.reply(405, json.dumps({"error": f"POST a JSON object such as {EXAMPLE}"}))

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # clients that may wait for a connection at once

    return Server(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(lrec.load(sys.argv[1]), int(sys.argv[2])).serve_forever()
