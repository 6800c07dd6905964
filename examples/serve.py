"""Recommendations over HTTP from a trained run, with Python's own server; see docs/serve.md.

python serve.py runs/first 8000
curl localhost:8000 --data '{"histories": [["SKU-0001", "SKU-0007"]], "k": 5}'
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import lrec
from lrec.serving.recommender import Model


def answer(model: Model, body: bytes) -> tuple[int, str]:
    """Status and JSON for a request, whose keys are the arguments of Model.recommend: histories, k, exclude, ..."""
    try:
        return 200, model.recommend(**json.loads(body)).write_json()
    except (ValueError, TypeError) as wrong:
        return 400, json.dumps({"error": str(wrong)})


def server(model: Model, port: int) -> HTTPServer:
    """A server on this machine that answers one request at a time; port 0 takes any free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = answer(model, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(lrec.load(sys.argv[1]), int(sys.argv[2])).serve_forever()
