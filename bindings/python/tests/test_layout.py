"""The structs and numbers that `_abi` mirrors by hand, against the C header as compiled."""

import ctypes as c
import os
import re
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from vrust import _abi, engine

ROOT = Path(__file__).resolve().parents[3]
INCLUDE = ROOT / "include"
STRUCTS = {"VrustEngineOptions": _abi.EngineOptions, "VrustEvent": _abi.Event}
NUMBERS = {
    "VRUST_OK": _abi.OK, "VRUST_TIMEOUT": _abi.TIMEOUT, "VRUST_TRUNCATED": _abi.TRUNCATED,
    "VRUST_CLOSED": _abi.CLOSED, "VRUST_ERROR_BUFFER_TOO_SMALL": _abi.BUFFER_TOO_SMALL,
    "VRUST_EVENT_DELTA": _abi.DELTA, "VRUST_EVENT_PROMPT": _abi.PROMPT,
    "VRUST_EVENT_FINISHED": _abi.FINISHED, "VRUST_EVENT_ERROR": _abi.ERROR,
    "VRUST_EVENT_LOAD": _abi.LOAD, "VRUST_EVENT_ENGINE_FAILED": _abi.ENGINE_FAILED,
    "VRUST_EVENT_LAST": _abi.LAST,
    "VRUST_DTYPE_AUTO": engine._DTYPES["auto"], "VRUST_DTYPE_FLOAT32": engine._DTYPES["float32"],
    "VRUST_DTYPE_BFLOAT16": engine._DTYPES["bfloat16"],
    "VRUST_BACKEND_CPU": engine._BACKENDS["cpu"],
    "VRUST_BACKEND_REFERENCE": engine._BACKENDS["reference"],
    "VRUST_SCHEDULING_FCFS": engine._POLICIES["fcfs"],
    "VRUST_SCHEDULING_PRIORITY": engine._POLICIES["priority"],
    "VRUST_LOAD_AUTO": engine._LOAD_FORMATS["auto"],
    "VRUST_LOAD_DUMMY": engine._LOAD_FORMATS["dummy"],
}
FINISH_REASONS = {"EOS": "stop", "STOP_TOKEN": "stop", "STOP_STRING": "stop", "LENGTH": "length",
                  "ABORT": "abort", "DEADLINE": "deadline"}


def header_fields(header, name):
    """The names of a struct's fields, in the header's order."""
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", header, re.DOTALL)[1]
    return re.findall(r"(\w+);$", re.sub(r"//.*", "", body), re.MULTILINE)


def compiled(expressions):
    """The values of C expressions, as a program says that includes the header."""
    lines = "".join(f'  printf("%lld\\n", (long long)({e}));\n' for e in expressions)
    source = ("#include <stddef.h>\n#include <stdio.h>\n#include <vrust/vrust.h>\n"
              f"int main(void) {{\n{lines}  return 0;\n}}\n")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "layout")
        Path(program + ".c").write_text(source, encoding="ascii")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-std=c11", f"-I{INCLUDE}", program + ".c", "-o", program],
                       check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


@unittest.skipUnless(shutil.which(os.environ.get("CC", "cc")), "no C compiler")
class Layout(unittest.TestCase):
    def test_structs(self):
        header = (INCLUDE / "vrust" / "vrust.h").read_text(encoding="utf-8")
        for name, mirror in STRUCTS.items():
            fields = [field for field, _ in mirror._fields_]
            self.assertEqual(fields, header_fields(header, name))
            wanted, found = [f"sizeof({name})"], [c.sizeof(mirror)]
            for field in fields:
                ours = getattr(mirror, field)
                wanted += [f"offsetof({name}, {field})", f"sizeof((({name} *)0)->{field})"]
                found += [ours.offset, ours.size]
            self.assertEqual(dict(zip(wanted, found)), dict(zip(wanted, compiled(wanted))))

    def test_logprob_records(self):
        header = (INCLUDE / "vrust" / "vrust.h").read_text(encoding="utf-8")
        fields = header_fields(header, "VrustLogprob")
        self.assertEqual(fields, ["position", "token_id", "logprob", "rank"])
        sizes = [struct.calcsize(_abi.LOGPROB.format[:2 + i]) for i in range(len(fields))]
        wanted = [f"offsetof(VrustLogprob, {field})" for field in fields]
        self.assertEqual(compiled(wanted), [size - 4 for size in sizes])
        self.assertEqual(compiled(["sizeof(VrustLogprob)"]), [_abi.LOGPROB.size])

    def test_numbers(self):
        self.assertEqual(dict(zip(NUMBERS, compiled(NUMBERS))), NUMBERS)
        numbers = compiled("VRUST_FINISH_" + name for name in FINISH_REASONS)
        self.assertEqual(dict(zip(numbers, FINISH_REASONS.values())), engine._FINISH)


if __name__ == "__main__":
    unittest.main()
