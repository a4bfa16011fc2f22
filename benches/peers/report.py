"""Tables and plots of what compare.py noted. Only figures of this machine's kind of CPU count, and
of vrust, in each row, only those of the newest build that has any. A Markdown file may hold tables
of several kinds: those of the others stay."""

import json
import platform
import statistics
from collections import defaultdict

from limits import Limits

# The tables of a kind of machine stand between these lines of a Markdown file.
BEGIN, END = "<!-- peers: {} -->", "<!-- end of peers: {} -->"
# Flags of a CPU, best first, and how vrust calls the path that they allow.
KINDS = {"amx_tile": "amx", "avx512_bf16": "avx512-bf16", "avx512f": "avx512", "avx2": "avx2"}
SHAPES = {"qwen3-0.6b": "Qwen3-0.6B", "llama-3.2-1b": "Llama-3.2-1B"}
# Bytes of a checkpoint's weights in bf16; embedding and head are one matrix.
WEIGHTS = {"qwen3-0.6b": 1_192_099_840, "llama-3.2-1b": 2_471_628_800}
FORMATS = {"none": "bf16", "int8": "int8", "int4": "int4"}
PEERS = {"openvino": "OpenVINO GenAI", "llama": "llama.cpp server", "llama-bench": "llama-bench",
         "vllm": "vLLM CPU", "transformers": "transformers"}
DIGITS = {"start": 2, "decode": 1, "peak": 0}
UNITS = {"start": "s", "decode": "tok/s", "concurrent": "output tok/s", "peak": "MiB"}
# How many times the best peer's figure vrust's is meant to be.
TARGETS = {
    ("decode", "none"): 1.05, ("decode", "int8"): 1.35, ("decode", "int4"): 1.4,
    ("prefill 512", "none"): 1.1, ("prefill 2048", "none"): 1.15,
    ("prefill 512", "int8"): 1.4, ("prefill 2048", "int8"): 1.4,
    ("concurrent", "none"): 1.25, ("concurrent", "int8"): 1.3,
}
# What start and peak are measured against: seconds beside packing at 2 GB/s; MiB beside weights and
# 2,048 of KV cache.
START, PACKING, POOL, BESIDE = 1, 2e9, 2048, 200
# With int8, prefill and batches are compared with OpenVINO's; decode with llama.cpp's too.
ONLY_OPENVINO = {("prefill 512", "int8"), ("prefill 2048", "int8"), ("concurrent", "int8")}


def cpu_lines(name):
    """What /proc/cpuinfo says under a name."""
    try:
        lines = [line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line]
    except OSError:
        lines = []
    return [value.strip() for key, value in lines if key.strip() == name]


def cpu_kind():
    """The best instructions that this machine has."""
    flags = set(" ".join(cpu_lines("flags")[:1]).split())
    return next((kind for flag, kind in KINDS.items() if flag in flags), platform.machine())


def cpu_name():
    """Hypervisors give several generations one name: what they can do tells them apart."""
    names = cpu_lines("model name") or [platform.processor()]
    return f"{names[0]}, {cpu_kind()}"


class Results:
    """Values by shape, quantization, task and engine, each with its session and round."""

    def __init__(self, path):
        self.values = defaultdict(dict)
        self.every_build = defaultdict(dict)
        self.machine = {}
        self.sessions = set()
        cpu = cpu_name()
        records = [json.loads(line) for line in open(path)]
        records = [r for r in records if r["cpu"] == cpu]
        newest = {(r["shape"], r["quantization"], r["task"], r["engine"]): r["build"]
                  for r in records if "build" in r}
        for r in records:
            if "machine" in r:
                for name, value in r["machine"].items():
                    self.machine[name] = max(value, self.machine.get(name, 0))
                continue
            key = (r["shape"], r["quantization"], r["task"], r["engine"])
            self.every_build[key][r["session"], r["round"]] = r["value"]
            if r.get("build") != newest.get(key):
                continue
            self.sessions.add(r["session"])
            values = self.values[key]
            value = r["value"]
            if r["task"] == "peak":  # Of all runs, whatever they did.
                values["highest", 0] = max(value, values.get(("highest", 0), 0))
            else:
                values[r["session"], r["round"]] = value

    def rows(self):
        """Shape, quantization and task, in the order of the tables."""
        found = {key[:3] for key in self.values}
        tasks = ["decode", "prefill 512", "prefill 2048", "concurrent", "start", "peak"]
        tasks += sorted({t for _, _, t in found} - set(tasks))
        return [(s, q, t) for s in SHAPES for q in FORMATS for t in tasks if (s, q, t) in found]

    def of(self, row, engine):
        return self.values.get((*row, engine), {})

    def best_peer(self, row):
        """The peer that vrust is least ahead of. Ratios of turns in one run count, and others where
        there are none: memory speed drifts too far for rates of different hours."""
        lower_is_better = row[2] in ("start", "peak")
        peers = ["openvino"] if (row[2], row[1]) in ONLY_OPENVINO else PEERS
        leads = {}
        for peer in peers:
            ratios, together = self.ratios(row, "vrust", peer)
            if ratios:
                middle = statistics.median(ratios)
                leads[peer] = not together, -middle if lower_is_better else middle
        return min(leads, key=leads.get) if leads else None

    def ratios(self, row, engine, other):
        """One ratio for each pair of turns; of medians where they never ran together."""
        ours, theirs = self.of(row, engine), self.of(row, other)
        pairs = [ours[at] / theirs[at] for at in ours if at in theirs]
        if pairs:
            return pairs, True
        if ours and theirs:
            return [statistics.median(ours.values()) / statistics.median(theirs.values())], False
        return [], False


def spread(values, digits):
    if not values:
        return ""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio_cell(results, row):
    """vrust against the best peer, and what was meant."""
    best = results.best_peer(row)
    if best is None:
        return "", ""
    ratios, together = results.ratios(row, "vrust", best)
    cell = spread(ratios, 2) + ("" if together or not ratios else " *")
    return f"{cell} ({PEERS[best]})" if ratios else "", target_cell(row)


def target_cell(row):
    shape, quantization, task = row
    size = sum(Limits({}, shape, quantization).bytes)
    if task == "start":
        return f"{START + WEIGHTS[shape] / PACKING:.2f} s"
    if task == "peak":
        return f"{size / (1 << 20) + POOL + BESIDE:.0f} MiB"
    target = TARGETS.get((task, quantization))
    return f"{target:.2f}" if target else ""


def table(results, shape):
    engines = ["vrust", "vrust-kv8", *PEERS]
    heads = ["work", "vrust", "int8 KV", *PEERS.values(), "vrust / best peer", "target",
             "int8 KV / OpenVINO"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in results.rows():
        if row[0] != shape:
            continue
        task, digits = row[2], DIGITS.get(row[2], 0)
        name = f"{FORMATS[row[1]]} {task}, {UNITS.get(task, 'tok/s')}"
        cells = [spread(list(results.of(row, e).values()), digits) for e in engines]
        alike = spread(results.ratios(row, "vrust-kv8", "openvino")[0], 2)
        lines.append("| " + " | ".join([name, *cells, *ratio_cell(results, row), alike]) + " |")
    return lines


def http_table(results):
    lines = ["| over HTTP | `vrust serve` | C ABI | ratio |", "|---|---|---|---|"]
    for row in results.rows():
        # Only turns of one run: both sides are the same build there.
        ours, abi = (results.every_build.get((*row, e), {}) for e in ("vrust-http", "vrust"))
        abi = {at: value for at, value in abi.items() if at in ours}
        if not abi or row[2] in ("start", "peak"):
            continue
        digits = DIGITS.get(row[2], 0)
        ratios = [ours[at] / abi[at] for at in abi]
        name = f"{SHAPES[row[0]]} {FORMATS[row[1]]} {row[2]}"
        sides = [spread(list(side.values()), digits) for side in (ours, abi)]
        cells = [name, *sides, spread(ratios, 3)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def moved(results):
    """How much of the weights one stream moves, against the best reader of the same turns."""
    lines = ["| bf16 decode of one stream | weights, GB/s | best reader, GB/s | share |",
             "|---|---|---|---|"]
    for shape, size in WEIGHTS.items():
        row = (shape, "none", "decode")
        reader = results.of(row, "reader")
        ours = results.of(row, "vrust")
        pairs = [at for at in ours if at in reader]
        if pairs:
            rates = [ours[at] * size / 1e9 for at in pairs]
            reads = [reader[at] for at in pairs]
            shares = [a / b for a, b in zip(rates, reads)]
            cells = [SHAPES[shape], spread(rates, 1), spread(reads, 1), spread(shares, 2)]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def limits_table(results):
    """How near vrust is to what the machine allows, and how near its target would be."""
    lines = ["| share of the limit | limit, tok/s | vrust | best peer | the target's |",
             "|---|---|---|---|---|"]
    for row in results.rows():
        limits = Limits(results.machine, row[0], row[1])
        limit = limits.known() and limits.rate(row[2])
        ours = list(results.of(row, "vrust").values())
        if not limit or not ours:
            continue
        best, target = results.best_peer(row), TARGETS.get((row[2], row[1]))
        theirs = list(results.of(row, best).values()) if best else []
        share = statistics.median(theirs) / limit if theirs else None
        cells = [f"{SHAPES[row[0]]} {FORMATS[row[1]]} {row[2]}", f"{limit:.0f}",
                 spread([v / limit for v in ours], 2),
                 f"{share:.2f} ({PEERS[best]})" if share else "",
                 f"{share * target:.2f}" if share and target else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def machine_table(results):
    lines = ["| what the machine does, best seen | |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in results.machine.items()]
    return lines if results.machine else []


def markdown(results):
    sessions = sorted(results.sessions)
    lines = [f"{cpu_name()}, {sessions[0]} to {sessions[-1]} UTC; medians, with smallest and "
             "largest in brackets. A ratio is the median of pairs of turns; one marked * is of "
             "medians of runs at different times.", ""]
    for shape, name in SHAPES.items():
        if any(row[0] == shape for row in results.rows()):
            lines += [f"**{name}'s shape**", "", *table(results, shape), ""]
    lines += [*http_table(results), "", *moved(results), *limits_table(results),
              *machine_table(results)]
    return "\n".join(lines) + "\n"


def plot(results, shape):
    """Bars of vrust's figure over the best peer's, and a mark where it was meant to be."""
    rows = [r for r in results.rows() if r[0] == shape and r[2] not in ("start", "peak")]
    bars = []
    for row in rows:
        best = results.best_peer(row)
        ratios = results.ratios(row, "vrust", best)[0] if best else []
        if ratios:
            bars.append((f"{FORMATS[row[1]]} {row[2]}", PEERS[best], ratios,
                         TARGETS.get((row[2], row[1]))))
    width, left, step = 760, 150, 34
    most = max([1.5] + [max(b[2]) for b in bars]) * 1.02
    scale = (width - left - 170) / most
    height = 60 + step * len(bars)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<text x="12" y="24" font-size="15">{SHAPES[shape]}: vrust over the best peer '
           '(line: 1.0; red: target)</text>']
    for i, (name, peer, ratios, target) in enumerate(bars):
        y, middle = 42 + i * step, statistics.median(ratios)
        low, high = left + min(ratios) * scale, left + max(ratios) * scale
        out += [f'<text x="12" y="{y + 15}">{name}</text>',
                f'<rect x="{left}" y="{y}" width="{middle * scale:.1f}" height="20" '
                'fill="#3b7dd8"/>',
                f'<path d="M{low:.1f} {y + 10}H{high:.1f}" stroke="#123" stroke-width="2"/>',
                f'<text x="{max(high, left + (target or 0) * scale) + 8:.1f}" y="{y + 15}">'
                f'{middle:.2f} x {peer}</text>']
        if target:
            x = left + target * scale
            out.append(f'<path d="M{x:.1f} {y - 4}V{y + 24}" stroke="#c22" stroke-width="3"/>')
    x = left + scale
    out += [f'<path d="M{x:.1f} 36V{height - 14}" stroke="#888" stroke-dasharray="4 3"/>',
            "</svg>"]
    return "\n".join(out) + "\n"


def replaced(text, kind, tables):
    """A Markdown text with new tables of a kind; behind all others where it had none."""
    begin, end = BEGIN.format(kind), END.format(kind)
    section = f"{begin}\n{tables}{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    before, rest = text.split(begin)
    return before + section + rest.split(end)[1]


def write(path, markdown_path, plots):
    results = Results(path)
    tables, kind = markdown(results), cpu_kind()
    print(tables)
    if markdown_path:
        markdown_path.write_text(replaced(markdown_path.read_text(), kind, tables))
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        for shape in SHAPES:
            if any(row[0] == shape for row in results.rows()):
                (plots / f"peers-{shape}-{kind}.svg").write_text(plot(results, shape))
