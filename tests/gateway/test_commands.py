"""The other commands against a running server, and the server's own edges: signals, sockets."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import requests

from harness import BUILD, ROOT, Server, run, samples

LONG = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}


def address(server):
    host, port = server.url.split("//")[1].rsplit(":", 1)
    return host, int(port)


class Commands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", "demo")
        cls.addClassCleanup(cls.server.__exit__)

    def test_chat(self):
        url = self.server.url + "/v1"
        done = run("chat", "--url", url, "-q", "Hello", "--temperature", "0", "--max-tokens", "20")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.strip())
        typed = run("chat", "--url", url, "--temperature", "0", "--max-tokens", "20",
                    input="Hello\n\nAnd you?\n")
        self.assertEqual(typed.returncode, 0, typed.stderr)
        self.assertEqual(typed.stdout.splitlines()[0], done.stdout.splitlines()[0])
        self.assertEqual(len(typed.stdout.splitlines()), 2)

    def test_complete(self):
        done = run("complete", "--url", self.server.url + "/v1", "-q", "Once upon a",
                   "--temperature", "0", "--max-tokens", "5")
        self.assertEqual((done.returncode, bool(done.stdout.strip())), (0, True), done.stderr)
        wrong = run("complete", "--url", "http://127.0.0.1:9/v1", "-q", "a")
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("127.0.0.1:9", wrong.stderr)

    def test_bench_serve(self):
        before = samples(self.server.url)["vllm:generation_tokens_total"]
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "figures.json")
            for backend in ("openai", "openai-chat"):
                done = run("bench", "serve", "--backend", backend, "--base-url", self.server.url,
                           "--num-prompts", "20", "--random-input-len", "16", "--ignore-eos",
                           "--random-output-len", "8", "--request-rate", "200", "--save-result",
                           "--max-concurrency", "8", "--percentile-metrics",
                           "ttft,tpot,itl,e2el", "--result-filename", file)
                self.assertEqual(done.returncode, 0, done.stderr)
                figures = json.loads(Path(file).read_text())
                self.assertEqual((figures["completed"], figures["failed"]), (20, 0))
                self.assertEqual(figures["total_output_tokens"], 160)
                for name in ("duration", "request_throughput", "output_throughput",
                             "total_token_throughput", "mean_ttft_ms", "median_tpot_ms",
                             "p99_itl_ms", "std_e2el_ms"):
                    self.assertGreaterEqual(figures[name], 0, name)
                if backend == "openai":
                    self.assertEqual(figures["total_input_tokens"], 320)
        made = samples(self.server.url)["vllm:generation_tokens_total"] - before
        self.assertEqual(made, 2 * 21 * 8)  # Each asks once before it counts.


class Edges(unittest.TestCase):
    def test_sigterm_finishes_what_runs(self):
        with Server() as server:
            response = requests.post(server.url + "/v1/completions", json=LONG, stream=True,
                                     timeout=60)
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
            self.assertEqual(rest[-1], b"data: [DONE]")
            self.assertEqual(server.process.wait(20), 0)
            with self.assertRaises(requests.ConnectionError):
                requests.get(server.url + "/health", timeout=5)

    def test_a_second_signal_ends_at_once(self):
        with Server("--max-num-seqs", "1") as server:
            for _ in range(4):
                threading.Thread(target=self._swallow, args=(server.url,), daemon=True).start()
            while not samples(server.url)["vllm:num_requests_running"]:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            self.assertNotEqual(server.process.wait(10), 0)

    @staticmethod
    def _swallow(url):
        try:
            requests.post(url + "/v1/completions", json={**LONG, "max_tokens": 2000, "n": 64},
                          timeout=60)
        except requests.RequestException:
            pass

    def test_slow_headers_are_cut_off(self):
        with Server() as server:
            with socket.create_connection(address(server)) as slow:
                slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n")
                self.assertEqual(requests.get(server.url + "/health", timeout=5).status_code, 200)
                slow.settimeout(15)
                begin = time.time()
                try:
                    while slow.recv(4096):
                        pass
                except ConnectionError:
                    pass
                self.assertLess(time.time() - begin, 14)

    def test_header_floods(self):
        with Server() as server:
            with socket.create_connection(address(server)) as flood:
                flood.settimeout(15)
                try:
                    flood.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
                    for i in range(20000):
                        flood.sendall(b"X-%d: %s\r\n" % (i, b"a" * 100))
                    flood.sendall(b"\r\n")
                except ConnectionError:
                    pass
                try:
                    answer = flood.recv(200)
                except ConnectionError:
                    answer = b""
                self.assertTrue(answer == b"" or b" 431 " in answer, answer)
            self.assertEqual(requests.get(server.url + "/health", timeout=5).status_code, 200)

    def test_too_many_connections_wait(self):
        with Server("--max-connections", "4") as server:
            idle = [socket.create_connection(address(server)) for _ in range(4)]
            time.sleep(0.2)
            with self.assertRaises(requests.RequestException):
                requests.get(server.url + "/health", timeout=1)
            for connection in idle:
                connection.close()
            self.assertEqual(requests.get(server.url + "/health", timeout=10).status_code, 200)

    def test_garbage_is_answered(self):
        with Server() as server:
            for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\0" * 100,
                            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
                            b"Content-Length: -1\r\n\r\n",
                            b"GET /../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"):
                with socket.create_connection(address(server)) as connection:
                    connection.sendall(garbage)
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(15)
                    try:
                        self.assertNotIn(b" 200 ", connection.recv(4096).split(b"\r\n")[0] + b" ")
                    except ConnectionError:
                        pass
            self.assertEqual(requests.get(server.url + "/health", timeout=5).status_code, 200)

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "vrust.sock")
            for _ in range(2):  # The second finds the first one's socket.
                with Server("--uds", path) as server:
                    self.assertEqual(server.url, "unix:" + path)
                    with socket.socket(socket.AF_UNIX) as connection:
                        connection.connect(path)
                        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                        self.assertIn(b" 200 ", connection.recv(4096))
                    server.process.kill()
                    server.process.wait()

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                            "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                            "-days", "2", "-subj", "/CN=localhost", "-addext",
                            "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
            with Server("--ssl-certfile", cert, "--ssl-keyfile", key) as server:
                self.assertTrue(server.url.startswith("https://"))
                response = requests.get(server.url + "/health", verify=cert, timeout=5)
                self.assertEqual(response.status_code, 200)
                with self.assertRaises(requests.exceptions.SSLError):
                    requests.get(server.url + "/health", timeout=5)  # An unknown authority.

    def test_prompts_are_not_logged(self):
        with Server("--enable-log-requests", "--uvicorn-log-level", "debug") as server:
            body = {"prompt": "a very private matter", "max_tokens": 2}
            requests.post(server.url + "/v1/completions", json=body, timeout=10)
            requests.post(server.url + "/v1/completions", json={**body, "n": 0}, timeout=10)
        log = "".join(server.log)
        self.assertIn("/v1/completions", log)
        self.assertNotIn("private", log)

    def test_load(self):
        subprocess.run(["go", "build", "-o", str(BUILD / "bin" / "load"), "./tools/load"],
                       cwd=ROOT / "examples" / "gateway", check=True)
        done = subprocess.run(
            [BUILD / "bin" / "load", "-vrust", BUILD / "bin" / "vrust", "-duration", "3s",
             "-max-tokens", "32", "-aborts", "1000"], cwd=ROOT, capture_output=True, text=True,
            timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        print(done.stdout)


if __name__ == "__main__":
    unittest.main()
