"""Receives webhooks. Needs MINION_WEBHOOK_SECRET, which `minion webhooks add` printed."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from minions.errors import InvalidSignature
from minions.webhooks import verify

seen = set()  # in a real service a table with a unique column


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            message = verify(body, self.headers, os.environ["MINION_WEBHOOK_SECRET"])
        except InvalidSignature as error:
            self.send_error(401, explain=error.message)
            return
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            print(message["type"], message["data"], flush=True)
        self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", 8800), Receiver).serve_forever()
