"""Compiles every kernel for every architecture with NVRTC, and looks at the machine code.

    compile.py [--sources kernels tests/cuda/checks] [--archs sm_80 ...] [--out build/cuda/cubins]

Needs requirements.txt (NVRTC, cuobjdump and nvdisasm as wheels); no GPU. No kernel may spill
registers or use a stack, and those of expect.json must hold the instructions named there.
"""

import argparse
import concurrent.futures
import ctypes
import glob
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time

ARCHS = ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"]


def toolkit():
    """The folder nvidia/cu13 of the wheels."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else []:
        found = os.path.join(folder, "cu13")
        if os.path.isdir(found):
            return found
    sys.exit("NVRTC's wheels are missing: pip install -r tests/cuda/requirements.txt")


class Nvrtc:
    def __init__(self, folder):
        lib = os.path.join(folder, "lib")
        builtins = os.path.join(lib, "libnvrtc-builtins.so.13.0")
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(os.path.join(lib, "libnvrtc.so.13"))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.lib, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def compile(self, source, name, headers, arch):
        """The cubin and the log; the cubin is None where the source is wrong."""
        program = ctypes.c_void_p()
        count = len(headers)
        texts = (ctypes.c_char_p * count)(*headers.values())
        names = (ctypes.c_char_p * count)(*[h.encode() for h in headers])
        options = [f"--gpu-architecture={arch}", "--std=c++17"]
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        self.lib.nvrtcCreateProgram(
            ctypes.byref(program), source, name.encode(), count, texts, names)
        result = self.lib.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").rstrip(b"\0").decode()
        cubin = self.text(program, "CUBIN") if result == 0 else None
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin, log


def read(path):
    with open(path, "rb") as f:
        return f.read()


def resources(tool, path):
    """Registers, stack and spills of each kernel of a cubin."""
    out = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    kernels = {}
    name = None
    for line in (out.stdout + out.stderr).splitlines():
        if match := re.search(r"Function (\w+):", line):
            name = match.group(1)
        elif name and "REG:" in line:
            kernels[name] = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
    return kernels


def instructions(tool, path):
    """The machine code of each kernel of a cubin, as text."""
    out = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True)
    kernels = {}
    for part in re.split(r"\s+Function : ", out.stdout)[1:]:
        name, _, body = part.partition("\n")
        kernels[name.strip()] = body
    return kernels


class Compiler:
    def __init__(self, arguments):
        self.folder = toolkit()
        self.nvrtc = Nvrtc(self.folder)
        self.out = arguments.out
        self.expect = json.loads(read(os.path.join(os.path.dirname(__file__), "expect.json")))
        self.headers = {}
        for source in arguments.sources:
            for path in sorted(glob.glob(f"{source}/*.cuh")):
                self.headers[os.path.basename(path)] = read(path)
        self.cuobjdump = os.path.join(self.folder, "bin", "cuobjdump")
        os.environ["PATH"] = os.path.join(self.folder, "bin") + ":" + os.environ["PATH"]

    def problems(self, arch, usage, code):
        for name, used in usage.items():
            if used.get("STACK", 0) or used.get("LOCAL", 0):
                yield f"{name} for {arch} uses a stack: {used}"
            if re.search(r"\b(LDL|STL)\b", code.get(name, "")):
                yield f"{name} for {arch} spills registers"
            for rule in self.expect:
                applies = re.fullmatch(rule["kernel"], name)
                if not applies or arch not in rule.get("archs", ARCHS):
                    continue
                for wanted in rule["has"]:
                    if not re.search(wanted, code.get(name, "")):
                        yield f"{name} for {arch} has no {wanted}"
                if used.get("REG", 0) > rule.get("registers", 255):
                    yield f"{name} for {arch} has {used['REG']} registers: {rule['registers']}"

    def job(self, path, arch):
        """Compiles one file; what is wrong, and the resources of its kernels."""
        source = read(path)
        key = hashlib.sha256(repr((source, sorted(self.headers.items()), arch,
                                   self.nvrtc.version, self.expect)).encode()).hexdigest()[:20]
        stem = os.path.join(self.out, f"{os.path.basename(path)[:-3]}.{arch}")
        if os.path.exists(stem + ".json"):
            done = json.loads(read(stem + ".json"))
            if done["key"] == key and not done["problems"]:
                return done
        cubin, log = self.nvrtc.compile(source, path, self.headers, arch)
        done = {"key": key, "problems": [], "usage": {}}
        if cubin is None:
            done["problems"].append(f"{path} for {arch} does not compile:\n{log}")
            return done
        # ptxas says so where it cannot keep products of a warpgroup under way.
        if "warning" in log or "serialized" in log:
            done["problems"].append(f"{path} for {arch}: {log}")
        with open(stem + ".cubin", "wb") as f:
            f.write(cubin)
        done["usage"] = resources(self.cuobjdump, stem + ".cubin")
        code = instructions(self.cuobjdump, stem + ".cubin")
        done["problems"] += self.problems(arch, done["usage"], code)
        with open(stem + ".json", "w") as f:
            json.dump(done, f)
        return done


def jobs(arguments):
    for source in arguments.sources:
        for path in sorted(glob.glob(f"{source}/*.cu")):
            for arch in arguments.archs:
                # A file for one architecture says so in its name.
                if arguments.only in path and ("sm90" not in path or arch == "sm_90a"):
                    yield path, arch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", nargs="+", default=["kernels", "tests/cuda/checks"])
    parser.add_argument("--archs", nargs="+", default=ARCHS)
    parser.add_argument("--out", default="build/cuda/cubins")
    parser.add_argument("--only", default="", help="files whose path holds this")
    parser.add_argument("--usage", action="store_true", help="print each kernel's resources")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    compiler = Compiler(arguments)
    began = time.time()
    passed, failed, kernels = 0, 0, set()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        work = list(jobs(arguments))
        for (path, arch), done in zip(work, pool.map(lambda w: compiler.job(*w), work)):
            kernels.update(done["usage"])
            for problem in done["problems"]:
                print(problem)
            passed += not done["problems"]
            failed += bool(done["problems"])
            if arguments.usage:
                for name, used in done["usage"].items():
                    print(f"{arch:8} {name:44} {used}")
    print(f"NVRTC {compiler.nvrtc.version}: {len(kernels)} kernels for "
          f"{len(arguments.archs)} architectures in {time.time() - began:.1f} s")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
