"""`vrust serve NAME`, with a stand-in for the hub that serves the demo model."""

import hashlib
import json
import os
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests

from harness import MODEL, Server, run

COMMIT = "89abcdef" * 5
FILES = {p.name: p.read_bytes() for p in Path(MODEL).iterdir() if p.is_file()}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.split("?")[0]
        resolve = f"/vrust/demo/resolve/{COMMIT}/"
        if path == "/api/models/vrust/demo/revision/main":
            self._answer(json.dumps({"sha": COMMIT, "siblings": [
                self._sibling(name, data) for name, data in FILES.items()]}).encode())
        elif path.startswith(resolve):
            self._answer(FILES[path.removeprefix(resolve)])
        else:
            self.send_error(404)

    @staticmethod
    def _sibling(name, data):
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"rfilename": name, "size": len(data), "blobId": git}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        return entry

    def _answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class HubTest(unittest.TestCase):
    def test_serve_by_name(self):
        hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        hub.asked = []
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        self.addCleanup(hub.server_close)
        self.addCleanup(hub.shutdown)
        with tempfile.TemporaryDirectory() as home:
            env = {"HF_HOME": home, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                   "HF_HUB_OFFLINE": "", "HF_HUB_CACHE": ""}
            with Server(model="vrust/demo", env=env) as server:
                self.assertIn("vrust/demo: 100 %", "".join(server.log))
                self._complete(server)
            self.assertTrue(any("model.safetensors" in path for path in hub.asked))
            hub.asked.clear()
            with Server(model="vrust/demo", env={**env, "HF_HUB_OFFLINE": "1"}) as server:
                self._complete(server)
            self.assertEqual(hub.asked, [])
            done = run("serve", "vrust/other", env={**os.environ, **env})
            self.assertEqual(done.returncode, 2)
            self.assertIn("vrust/other", done.stderr)

    def _complete(self, server):
        body = {"model": "vrust/demo", "prompt": "Once", "max_tokens": 3}
        answer = requests.post(server.url + "/v1/completions", json=body, timeout=10)
        self.assertEqual(answer.json()["usage"]["completion_tokens"], 3)


if __name__ == "__main__":
    unittest.main()
