"""Train the demo model's tokenizer: BPE with byte fallback, one token for each digit.

It writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.
"""

import argparse
import json
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

from corpus import documents

SPECIALS = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ '<|system|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learn_merges(texts, size):
    """Learn a BPE vocabulary of ``size`` entries, and return its tokens and merges.

    The texts are cut at words, digits and punctuation, so that no merge crosses such a border
    and the finished tokenizer needs no pre-tokenizer.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
        pre_tokenizers.Split("\n", "isolated"),
        pre_tokenizers.Punctuation("isolated"),
        pre_tokenizers.Digits(individual_digits=True)])
    alphabet = [chr(code) for code in range(32, 127)] + ["▁", "\n"]
    alphabet.remove(" ")
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    return sorted(state["vocab"], key=state["vocab"].get), merges


def build(texts, size):
    """Return a Llama-style tokenizer whose vocabulary has ``size`` entries."""
    tokens, merges = learn_merges(texts, size - len(SPECIALS) - len(BYTES))
    assert all("▁" not in left[1:] and "▁" not in right for left, right in merges)
    vocabulary = {token: index for index, token in enumerate(SPECIALS + BYTES + tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return tokenizer


def write_json(path, value):
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(tokenizer, folder):
    """Write the tokenizer's files into a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": 2048,
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE})


def check(tokenizer):
    """Assert that texts of many kinds survive encoding and decoding."""
    for text in ["Hello, world!", " two  spaces ", "12345 + 67", "line\nbreak\ttab", "naïve café",
                 "日本語 🦀 Ω", "a\u0000b", "{\"key\": [1, 2]}", "\u00a0\u200d\U0010fffd"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, text
        assert 0 not in ids, text
    digits = tokenizer.encode("1234", add_special_tokens=False).tokens
    assert [token for token in digits if re.search(r"\d", token)] == ["1", "2", "3", "4"], digits


def main():
    """Build the tokenizer and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--size", type=int, default=1792)
    parser.add_argument("--documents", type=int, default=60000)
    options = parser.parse_args()
    texts = (text for item in documents(1, options.documents) for _, text in item)
    tokenizer = build(texts, options.size)
    check(tokenizer)
    save(tokenizer, options.out)
    print(f"{tokenizer.get_vocab_size()} tokens written to {options.out}")


if __name__ == "__main__":
    main()
