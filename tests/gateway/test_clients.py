"""The official Go and Node clients against a running server."""

import os
import subprocess
import unittest
from pathlib import Path

from harness import Server

HERE = Path(__file__).resolve().parent


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", "demo")
        cls.addClassCleanup(cls.server.__exit__)

    def _run(self, folder, *command):
        done = subprocess.run(command, cwd=HERE / folder, capture_output=True, text=True,
                              env={**os.environ, "VRUST_URL": self.server.url}, timeout=240)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_go(self):
        self._run("openai-go", "go", "vet", ".")
        self.assertIn("ok", self._run("openai-go", "go", "test", "-count=1", "."))

    def test_node(self):
        self._run("openai-node", "npm", "ci", "--silent")
        self.assertIn("# pass 6", self._run("openai-node", "node", "--test"))


if __name__ == "__main__":
    unittest.main()
