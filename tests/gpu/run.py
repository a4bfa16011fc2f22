"""Runs the stages of tests/gpu/run and writes down what they say."""

import argparse
import datetime
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, "tests", "gpu")


def libraries(dry):
    """Paths of the driver and of NVRTC, and the folder to name to the engine."""
    if dry:
        folder = os.path.join(ROOT, "build", "cuda", "lib")
        return os.path.join(folder, "libcuda.so.1"), os.path.join(folder, "libnvrtc.so.13"), folder
    places = [os.path.join(p, "nvidia", "cu13", "lib") for p in sys.path]
    places += ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]
    for place in places:
        found = sorted(glob.glob(os.path.join(place, "libnvrtc.so.1[3-9]")))
        if found:
            return "libcuda.so.1", found[0], place
    return "libcuda.so.1", "libnvrtc.so.13", ""


class Run:
    def __init__(self, arguments):
        self.dry = arguments.dry
        self.out = arguments.out
        self.deadline = time.monotonic() + arguments.minutes * 60
        self.cuda, self.nvrtc, folder = libraries(self.dry)
        self.environment = dict(os.environ)
        self.environment["PYTHONPATH"] = os.path.join(ROOT, "bindings", "python")
        if folder:
            self.environment["VRUST_CUDA_LIB_DIR"] = folder
        if self.dry:
            self.environment["LD_LIBRARY_PATH"] = folder
            self.environment["VRUST_EMU_MEMORY"] = str(512 << 20)
        self.results = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "dry": self.dry,
            "stages": {},
        }
        self.passed = self.failed = 0

    def left(self):
        return self.deadline - time.monotonic()

    def command(self, words, limit, **more):
        """Runs a command within its limit and the time that is left: status and output."""
        limit = max(1, min(limit, self.left()))
        try:
            done = subprocess.run(
                words, cwd=ROOT, env={**self.environment, **more}, text=True, timeout=limit,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            return done.returncode, done.stdout
        except subprocess.TimeoutExpired as e:
            text = e.stdout or b""
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            return 124, text + f"\nstopped after {limit:.0f} s"
        except OSError as e:
            return 127, str(e)

    def stage(self, name, work):
        """Runs a stage, which gives (ok or None for skipped, what to note)."""
        began = time.monotonic()
        ok, note = work() if self.left() > 5 else (None, "no time left")
        took = time.monotonic() - began
        state = "skipped" if ok is None else "ok" if ok else "FAILED"
        self.results["stages"][name] = {"state": state, "seconds": round(took, 1), "note": note}
        self.passed += ok is True
        self.failed += ok is False
        print(f"{name:14} {state:8} {took:6.1f} s", flush=True)
        if ok is not True:
            print("    " + str(note)[-2000:].replace("\n", "\n    "), flush=True)
        self.write()

    def write(self):
        with open(os.path.join(self.out, "results.json"), "w", encoding="utf-8") as f:
            json.dump(self.results, f, indent=1)
        with open(os.path.join(self.out, "row.md"), "w", encoding="utf-8") as f:
            f.write(table(self.results))

    # ---- stages ----

    def device(self):
        if self.dry:
            return True, "stand-in driver"
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,mig.mode.current"
        status, text = self.command(["nvidia-smi", "--query-gpu=" + query, "--format=csv"], 20)
        return status == 0, text.strip()

    def checks(self, *more):
        return [os.path.join(ROOT, "build", "cuda", "kernel_checks"), "--cuda", self.cuda,
                "--nvrtc", self.nvrtc, *more]

    def conformance(self):
        recorded = os.path.join(ROOT, "build", "cuda", "recorded.bin")
        status, text = self.command(self.checks("--against", recorded), 120)
        with open(os.path.join(self.out, "conformance.log"), "w", encoding="utf-8") as f:
            f.write(text)
        return status == 0, "\n".join(text.splitlines()[-3:] if status == 0 else failures(text))

    def sanitizer(self):
        tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if self.dry or not os.path.exists(tool):
            return None, "no compute-sanitizer"
        notes, ok = [], True
        for kind in ("memcheck", "racecheck"):
            for only in ("decode_variants", "gemm_skinny", "sample_rows"):
                words = [tool, "--tool", kind, "--error-exitcode", "9"]
                words += self.checks("--only", only)
                status, text = self.command(words, 40)
                ok = ok and status in (0, 124)
                notes.append(f"{kind} {only}: {text.strip().splitlines()[-1] if text else status}")
        return ok, "\n".join(notes)

    def kernels(self):
        words = [os.path.join(ROOT, "build", "cuda", "kernel_bench"), "--cuda", self.cuda,
                 "--nvrtc", self.nvrtc, "--small", "1" if self.dry else "0"]
        status, text = self.command(words, 60)
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return status == 0 and len(lines) > 10, lines if status == 0 else text

    def python(self, script, task, limit):
        """A task of a Python script of this folder; its last line is a JSON object."""
        words = [sys.executable, os.path.join(HERE, script), task, "dry" if self.dry else "full"]
        status, text = self.command(words, limit)
        last = text.strip().splitlines()[-1] if text.strip() else ""
        if status == 0 and last.startswith("{"):
            answer = json.loads(last)
            return (None if "skipped" in answer else True), answer
        return False, text

    def ratio(self):
        """The request mix of vLLM's page, where it had 24 times Hugging Face transformers."""
        stages = self.results["stages"]
        ours, theirs = (stages.get(name, {}).get("note") for name in ("page", "page peer"))
        speeds = [note.get("tok/s") if isinstance(note, dict) else None for note in (ours, theirs)]
        if None in speeds:
            return None, f"both sides are needed: vrust {speeds[0]}, transformers {speeds[1]} tok/s"
        return True, {"vrust / transformers, static batches": f"{speeds[0] / speeds[1]:.1f}x",
                      "tok/s out": f"{speeds[0]} / {speeds[1]}"}

    def start(self):
        """From the start of a process to its first token: kernels cold, then warm."""
        cache = os.path.join(self.out, "cache")
        shutil.rmtree(cache, ignore_errors=True)
        note = {}
        for which in ("cold", "warm"):
            began = time.monotonic()
            status, text = self.command(
                [sys.executable, os.path.join(HERE, "engine.py"), "first",
                 "dry" if self.dry else "full"], 90, XDG_CACHE_HOME=cache)
            if status != 0:
                return False, text
            note[which + "_s"] = round(time.monotonic() - began, 2)
        return True, note


def failures(text):
    """The failed lines of a log of checks, with what follows each."""
    lines = text.splitlines()
    marked = [i for i, line in enumerate(lines) if "FAILED" in line or line.startswith("no check")]
    shown = [lines[j] for i in marked for j in range(i, min(i + 3, len(lines)))]
    return (shown or lines)[-40:]


def table(results):
    """The rows for BENCHMARKS.md."""
    stages = results["stages"]
    rows = [f"GPU run of {results['date']}" + (" (dry: stand-in driver)" if results["dry"] else ""),
            "", "| | |", "|---|---|"]
    for name, stage in stages.items():
        note = stage["note"]
        if name == "device":
            note = re.sub(r"\s*\n\s*", "; ", str(note))
            rows.append(f"| device | {note} |")
        elif name == "kernels" and isinstance(note, list):
            for line in note:
                if "kernel" not in line:
                    continue
                share = f"{line['share_of_copy']:.0%} of copy" if line["gb_per_s"] else ""
                speed = f"{line['tflop_per_s']:.0f} TFLOP/s" if line["tflop_per_s"] >= 1 else ""
                figures = ", ".join(x for x in (f"{line['us']:.1f} us", share, speed) if x)
                rows.append(f"| {line['kernel']} {line['shape']} | {figures} |")
        elif isinstance(note, dict):
            for key, value in note.items():
                rows.append(f"| {name}: {key} | {value} |")
        else:
            last = str(note).strip().splitlines()
            rows.append(f"| {name} | {stage['state']}{': ' + last[-1] if last else ''} |")
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--out", default=os.path.join(ROOT, "build", "gpu-results"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    run = Run(arguments)
    stages = [
        ("device", run.device),
        ("conformance", run.conformance),
        ("golden", lambda: run.python("engine.py", "golden", 90)),
        ("bfloat16", lambda: run.python("engine.py", "bfloat16", 60)),
        ("kernels", run.kernels),
        ("start", run.start),
        ("decode", lambda: run.python("engine.py", "decode", 90)),
        ("prefill", lambda: run.python("engine.py", "prefill", 40)),
        ("ceilings", lambda: run.python("peers.py", "ceilings", 30)),
        ("graph peer", lambda: run.python("peers.py", "graph", 60)),
        ("saturation", lambda: run.python("engine.py", "saturation", 120)),
        ("mix", lambda: run.python("engine.py", "mix", 60)),
        ("page", lambda: run.python("engine.py", "page", 60)),
        ("page peer", lambda: run.python("peers.py", "page", 90)),
        ("24x page", run.ratio),
        ("transformers", lambda: run.python("peers.py", "transformers", 60)),
        ("continuous", lambda: run.python("peers.py", "continuous", 60)),
        ("sanitizer", run.sanitizer),
    ]
    only = [name for name in arguments.only.split(",") if name]
    for name, work in stages:
        if not only or name in only:
            run.stage(name, work)
    print(f"results in {arguments.out}")
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed or not run.passed else 0


if __name__ == "__main__":
    sys.exit(main())
