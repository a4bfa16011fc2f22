"""Starts `vrust serve` on the demo model for a test, and ends it."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("VRUST_BUILD", ROOT / "build")).resolve()
COMMAND = str(BUILD / "bin" / "vrust")
MODEL = str(ROOT / "examples" / "demo-model")


class Server:
    """A running server: `url`, and what it logged."""

    def __init__(self, *args, model=MODEL, env=None):
        self.process = subprocess.Popen(
            [COMMAND, "serve", model, "--port", "0", "--host", "127.0.0.1", *args],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self.log = []
        self._ready = threading.Event()
        self.url = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(60) or self.url is None:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"msg=ready .*at=(\S+)", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self._reader.join(5)
        self.process.stderr.close()


def run(*args, **options):
    """Runs the command to its end."""
    return subprocess.run([COMMAND, *args], capture_output=True, text=True, timeout=60, **options)


def samples(url):
    """The metrics' samples by name, summed over labels."""
    import requests
    found = {}
    for line in requests.get(url + "/metrics", timeout=10).text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{", 1)[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found
