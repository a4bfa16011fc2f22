#!/usr/bin/env python3
"""The inner loops of the kernels that callgrind cannot run: loops.py LIBRARY PREFIX.

Disassembles LIBRARY and prints, for each function of the CPU backend whose name has PREFIX, its
innermost loops with dot products: `name dots loads others`, by turn of the loop, and first the one
with the fewest others and loads for each, which is the widest tile's; polynomials have more. Loads
are instructions that read memory, a dot product's own operand among them; others are all that is
neither a dot product nor a plain load into a register: what an inner loop should have little of.
"""

import re
import subprocess
import sys
from collections import Counter

DOTS = re.compile(r"^(vdpbf16ps|vpdpbusds?|vpmaddwd|vfmadd\d+ps|tdp\w+)$")
HEAD = re.compile(r"^[0-9a-f]+ <(.*)>:$")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
JUMP = re.compile(r"^j[a-z]+$")
MOVE = re.compile(r"^(vmov|vpmov|vbroadcast|vpbroadcast|mov|tileload)")
MEMORY = re.compile(r"\([^)]*%[^)]*\)")


def functions(library, prefix):
    """Names and instructions: address, mnemonic, operands."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", library]
    dump = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    name, body = None, []
    for line in dump.splitlines():
        if head := HEAD.match(line):
            if name and body:
                yield name, body
            wanted = "backend::cpu::" in head[1] and prefix in head[1]
            name, body = head[1] if wanted else None, []
        elif name and (parts := LINE.match(line)):
            body.append((int(parts[1], 16), parts[2], parts[3]))
    if name and body:
        yield name, body


def innermost_loops(body):
    """Ranges of instructions from a backward jump's target to the jump, with no other inside."""
    index = {address: i for i, (address, _, _) in enumerate(body)}
    loops = []
    for i, (_, mnemonic, operands) in enumerate(body):
        target = operands.split(" ")[0]
        if JUMP.match(mnemonic) and re.fullmatch("[0-9a-f]+", target):
            start = index.get(int(target, 16))
            if start is not None and start <= i:
                loops.append((start, i))
    return [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


def is_load(operands):
    """Whether a source operand is memory: the last operand is where the result goes."""
    depth, sources = 0, operands
    for at in range(len(operands) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(operands[at], 0)
        if operands[at] == "," and depth == 0:
            sources = operands[:at]
            return bool(MEMORY.search(sources))
    return False


def count(instructions):
    """Dots, loads and others of a loop."""
    dots = loads = others = 0
    for _, mnemonic, operands in instructions:
        operands = operands.split("#")[0].strip()
        load = is_load(operands) and mnemonic != "lea"
        loads += load
        if DOTS.match(mnemonic):
            dots += 1
        elif not (load and MOVE.match(mnemonic)) and not mnemonic.startswith("nop"):
            others += 1
    return dots, loads, others


def short(name):
    """`kernels::avx512bf16::linear_int8` without types and hashes."""
    name = re.sub(r"<[^<>]*>", "", re.sub(r"<[^<>]*>", "", name))
    return name.replace("vrust::backend::cpu::", "").replace(" ", "_")


def main():
    library, prefix = sys.argv[1], sys.argv[2]
    for name, body in sorted(functions(library, prefix)):
        found = Counter(count(body[a:b + 1]) for a, b in innermost_loops(body))
        dotted = [c for c in found if c[0] > 0]
        for dots, loads, others in sorted(dotted, key=lambda c: ((c[1] + c[2]) / c[0], -c[0])):
            print(short(name), dots, loads, others)


main()
