"""What the tokenizers are trained on, and what their goldens encode and decode."""

TRAINING = """\
The engine serves many requests at once. Each request asks for a few tokens, and the engine
answers them as soon as they are known. A request waits, runs, is preempted, and finishes.
The scheduler gives out blocks of memory; the blocks hold the keys and the values of attention.
When the memory is full, the newest request gives its blocks back and starts again later.
What is the weather in Paris today? It's sunny, and we'll have 25 degrees in the afternoon.
I don't know what they're doing, but you've seen that he'd rather stay, and I'm here too.
def add(first, second):
    return first + second

for index in range(10):
    print(index, add(index, 1))

{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}
In 1984, 2001 and 2024 there were 12345 reasons to count from 1 to 100, or to 1000000.
Der Zug fährt über die Brücke; la forêt est très belle; el niño comió una manzana.
Привет, мир! こんにちは世界。你好，世界！ 안녕하세요 😀 🎉 naïve café
The model reads the prompt in chunks, the model writes the answer one token at a time.
Think of the first block as a prefix: the same prefix gives the same keys and the same values.
"""

TEXTS = (
    "Hello world",
    "",
    " ",
    "The engine serves many requests at once.",
    " leading space",
    "trailing space ",
    "  two  spaces   and    more  ",
    "line one\nline two\n\nline four\r\n\ttabbed\n",
    "\n\n\n",
    "def add(first, second):\n    return first + second\n",
    "It's what they're doing; I'D say WE'LL see, you've",
    "12345 1 12 123 1234 3.14159 1,000,000",
    "😀🎉 👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "你好，世界！ こんにちは世界。 안녕하세요",
    "naïve café über Straße ĳ ﬁ Ⅷ ½",
    "cafe\u0301 n\u0303 a\u0308\u0323 e\u200d\u0301",
    "Привет, мир! مرحبا بالعالم שלום हिन्दी ไทย",
    "\ufffd \x00\x01\x7f \u200b\ufeff\u00a0\u2028 \ue000 \U0010ffff",
    "snake_case CamelCase kebab-case https://example.com/?q=a&b=%20#x",
    "!?... -- ### *** ((())) [[]] {{}} <<>> @@ $$ ^^ ~~ `` \\\\ ||",
    "\u2581already\u2581has\u2581underlines",
    "zzzzqqqqxxxxjjjj ZQXJ",
)

BYTES_THEN_TEXT = ("héllo 你 😀 end", "🎉🎉", "a\u0301b")
"""Decoded from every prefix of their ids: some prefixes end within a character."""


def texts_with(special_tokens):
    """The common texts, and texts in which the tokenizer's added tokens stand."""
    own = []
    for token in special_tokens:
        own.append(f"before{token}after")
        own.append(f"before {token} after")
    own.append("".join(special_tokens))
    if special_tokens:
        own.append(special_tokens[0][:-1] + " " + special_tokens[0] * 2 + "\n")
    return [*TEXTS, *own]
