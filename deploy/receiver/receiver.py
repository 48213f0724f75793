"""A receiver of webhooks: an example of what the other end of a route does. It needs Python 3.9 and nothing else.

It verifies the signature and the time of each request, as the specification of Standard Webhooks has it
(https://www.standardwebhooks.com), prints one line for each change of an alert, and recognises repeated requests by
their id: deliveries arrive at least once.

    WEBHOOK_SECRET=whsec_... python3 receiver.py [PORT]
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A request that is older or newer than this, in seconds, could have been recorded and sent again by a third party.
TOLERANCE = 300
MAX_BODY = 1 << 20
# The number of ids that are remembered. A real receiver stores them with what it does, in one transaction.
REMEMBERED = 100_000

seen: "OrderedDict[str, None]" = OrderedDict()


def verify(key: bytes, headers, body: bytes) -> str:
    """Returns why a request is not from the sender; an empty text if it is."""
    delivery, seconds = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not seconds.isascii() or not seconds.isdigit() or abs(time.time() - int(seconds)) > TOLERANCE:
        return "the time of the request is missing or too far from now"
    signed = f"{delivery}.{seconds}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    signatures = headers.get("webhook-signature", "").encode().split()
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        return "the signature is not of this secret"
    return ""


class Receiver(BaseHTTPRequestHandler):
    key: bytes

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/healthz" else 404)

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        error = verify(self.key, self.headers, body)
        if error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            self.answer(401)
            return
        delivery = self.headers["webhook-id"]
        if delivery not in seen:
            for alert in json.loads(body)["data"]["alerts"]:
                print(alert["status"], alert["severity"], alert["event_time"], alert["summary"], flush=True)
            seen[delivery] = None
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        """Requests are not logged: the alerts are printed."""


def main() -> None:
    secret = os.environ.get("WEBHOOK_SECRET", "")
    if not secret.startswith("whsec_"):
        sys.exit("WEBHOOK_SECRET must be the `secret` of the route: whsec_ and its key in Base64")
    Receiver.key = base64.b64decode(secret.removeprefix("whsec_"))
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    server = ThreadingHTTPServer(("", port), Receiver)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
