"""What a machine allows: for each op the longer of its bytes at the rate of the best reader and its
arithmetic at the rate of dot products in registers, summed over a task's ops.

Only what no engine can do without counts: weights and keys and values are read once a step, and
the products of linear layers and attention are done. Norms, softmax, rotary embeddings and sampling
are left out, so that nobody reaches the limit."""

from shapes import SHAPES

# Bytes of a weight, with its scales; the head keeps 6 bits under int4.
LAYER_BYTES = {"none": 2, "int8": 1, "int4": 0.5 + 1 / 32}
HEAD_BYTES = {"none": 2, "int8": 1, "int4": 0.75 + 1 / 32}
# The best of these that the machine has; the machine's table names them.
FLOAT_DOTS = ["tdpbf16ps, GFLOP/s", "vdpbf16ps, GFLOP/s", "f32 FMA 512 bits, GFLOP/s",
              "f32 FMA 256 bits, GFLOP/s"]
BYTE_DOTS = ["vpdpbusd, GOP/s", "vpmaddubsw and vpmaddwd, GOP/s", *FLOAT_DOTS]
# Sums of products of 4 bits may stay in 16.
NIBBLE_DOTS = ["vpdpbusd, GOP/s", "vpmaddubsw, GOP/s", *FLOAT_DOTS]
LAYER_DOTS = {"none": FLOAT_DOTS, "int8": BYTE_DOTS, "int4": NIBBLE_DOTS}
HEAD_DOTS = {"none": FLOAT_DOTS, "int8": BYTE_DOTS, "int4": BYTE_DOTS}


class Limits:
    """`machine` is what machine.c printed: figures by name."""

    def __init__(self, machine, shape, quantization, threads=2):
        def first(names):
            found = (machine.get(f"{name}, {threads} threads") for name in names)
            return next((value * 1e9 for value in found if value), None)

        self.read = first(["best read, GB/s"])
        self.floats = first(FLOAT_DOTS)
        self.dots = first(LAYER_DOTS[quantization])
        self.head_dots = first(HEAD_DOTS[quantization])
        config = SHAPES[shape]
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        dim = config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        per_hidden = 2 * heads * dim + 2 * kv_heads * dim + 3 * config["intermediate_size"]
        self.weights = layers * hidden * per_hidden
        self.head = config["vocab_size"] * hidden
        layer_bytes, head_bytes = LAYER_BYTES[quantization], HEAD_BYTES[quantization]
        self.bytes = (self.weights * layer_bytes, self.head * head_bytes)
        # Of one query and one position; of one position.
        self.products = 4 * layers * heads * dim
        self.kv_bytes = 2 * layers * kv_heads * dim * 2

    def known(self):
        # Every list of dot products ends with the floats'.
        return bool(self.read and self.floats)

    def linear(self, rows, head_rows):
        layers = max(self.bytes[0] / self.read, 2 * self.weights * rows / self.dots)
        head = 2 * self.head * head_rows / self.head_dots
        return layers + max(self.bytes[1] / self.read, head)

    def prefill(self, sequences, length):
        """Seconds for prompts of `length`."""
        pairs = sequences * length * (length + 1) / 2
        return self.linear(sequences * length, sequences) + self.products * pairs / self.floats

    def step(self, sequences, context):
        """Seconds for a decode step of sequences that have `context` positions."""
        positions = sequences * context
        attention = max(self.kv_bytes * positions / self.read,
                        self.products * positions / self.floats)
        return self.linear(sequences, sequences) + attention

    def rate(self, task):
        """Tokens a second, as compare.py counts them."""
        if task == "decode":
            return 1 / self.step(1, 96)
        if task == "concurrent":
            steps = sum(self.step(32, 256 + i) for i in range(63))
            return 32 * 64 / (self.prefill(32, 256) + steps)
        if task.startswith("prefill "):
            length = int(task.split()[1])
            return length / self.prefill(1, length)
        return None
