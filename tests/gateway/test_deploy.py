"""examples/deploy: by the tools' own parsers, and a stream through nginx with its configuration."""

import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import requests

from harness import ROOT, Server

HERE = Path(__file__).resolve().parent
DEPLOY = ROOT / "examples" / "deploy"


class Deploy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", "demo")
        cls.addClassCleanup(cls.server.__exit__)

    def test_schemas(self):
        env = {**os.environ, "VRUST_URL": self.server.url}
        for command in (["go", "vet", "."], ["go", "test", "-count=1", "-v", "."]):
            done = subprocess.run(command, cwd=HERE / "deploy", env=env, capture_output=True,
                                  text=True, timeout=600)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_nginx_passes_streams_on(self):
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        text = (DEPLOY / "nginx.conf").read_text()
        port = 18080 + os.getpid() % 1000
        self.assertIn("server vrust:8000;", text)
        text = text.replace("vrust:8000", self.server.url.split("//")[1])
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
        with tempfile.TemporaryDirectory() as folder:
            temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in
                                ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            text = re.sub(r"http \{", "http { access_log off; " + temporary, text, count=1)
            config = Path(folder, "nginx.conf")
            config.write_text(f"pid {folder}/pid; daemon off; error_log {folder}/log;\n" + text)
            checked = subprocess.run([nginx, "-t", "-c", config], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stderr)
            process = subprocess.Popen([nginx, "-c", config], stderr=subprocess.DEVNULL)
            try:
                self._stream(f"http://127.0.0.1:{port}")
            finally:
                process.terminate()
                process.wait(10)

    def _stream(self, url):
        for _ in range(100):
            try:
                requests.get(url + "/health", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        self.assertEqual(requests.get(url + "/metrics", timeout=5).status_code, 404)
        body = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        response = requests.post(url + "/v1/completions", json=body, stream=True, timeout=60)
        times = [time.monotonic() for line in response.iter_lines(chunk_size=1) if line]
        # Held back, all chunks would come at the end: at once.
        first, last = times[0], times[-1]
        self.assertGreater(len(times), 50)
        middle = times[len(times) // 2]
        self.assertGreater(middle - first, 0.1 * (last - first))
        self.assertGreater(last - first, 0.05)


if __name__ == "__main__":
    unittest.main()
