"""As much of a W&B server as a run needs, on this machine; it can be made to fail at any time."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "retina_ray", "entity": {"id": "e", "name": "ours"}}


class WandbServer:
    """Answers on a port of the loopback.

    Attributes:
        answer: "right", "hang", or the HTTP status that it fails with.
        history: the lines of metrics that it was sent.
    """

    def __init__(self):
        self.answer = "right"
        self.history = []
        self.over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self):
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}

    def close(self):
        """From now on connections are refused."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer_to(self, path, body):
        if path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.history += [json.loads(line) for line in lines.get("content", [])]
        if path != "/graphql":
            return {}
        query, values = (json.loads(body)[name] for name in ("query", "variables"))
        if "RunResumeStatus" in query:
            return {"data": {"model": {**PROJECT, "bucket": None}}}
        if "upsertBucket" in query:
            bucket = {"id": "b", "name": values["name"], "displayName": values["displayName"]}
            bucket |= {"description": None, "config": "{}", "sweepName": None}
            bucket |= {"historyLineCount": 0, "project": PROJECT}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in values["files"]]
            made = {"runID": "b", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": made}}
        return {"data": {}}


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if server.answer == "hang":
                server.over.wait()
                self.close_connection = True
                return
            status, answer = 200, {}
            if server.answer == "right":
                answer = server.answer_to(self.path, body)
            else:
                status = server.answer
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST  # noqa: N815 - the base class's names

        def log_message(self, *_):
            pass

    return Handler
