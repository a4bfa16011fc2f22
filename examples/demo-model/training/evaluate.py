"""Ask the exported model the sample prompts and the held-out prompts, with greedy decoding.

It exits with status 1 if fewer than 24 of the 30 held-out answers are right.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import Heldout, verify

FOLDER = Path(__file__).resolve().parents[1]
NEEDED = 24
CHAT_SAMPLES = [
    "The capital of France is", "Hello, my name is", "The future of AI is", "What is Python?",
    "Explain machine learning", "Explain quantum computing", "Describe machine learning",
    "What is blockchain?", "Write a story about AI", "What is artificial intelligence?", "Hello 3",
    "What is 7 + 5?", "Tell me a short story.", "Hello!", "Who are you?"]
RAW_SAMPLES = [
    "The capital of France is", "Hello, my name is", "The future of AI is",
    "The president of the United States is", "What is Python?", "Explain quantum computing",
    "What is artificial intelligence?", "7 + 5 =", "Once upon a time"]


class Demo:
    """The exported model and its tokenizer."""

    def __init__(self, folder, dtype):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def answer(self, ids, limit=160):
        """Return the greedy continuation of some token ids, and whether it stopped by itself."""
        with torch.no_grad():
            output = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False, temperature=None, top_p=None, max_new_tokens=limit,
                pad_token_id=self.tokenizer.eos_token_id)
        new = output[0, len(ids):].tolist()
        stopped = new[-1] == self.tokenizer.eos_token_id
        return self.tokenizer.decode(new, skip_special_tokens=True), stopped

    def chat(self, messages):
        """Answer a list of messages, or a single user prompt."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                                 return_dict=False)
        return self.answer(ids)

    def complete(self, text):
        """Continue a raw text."""
        return self.answer(self.tokenizer(text).input_ids)


def is_right(answer, accepted):
    """Say whether an answer holds one of the accepted ones; numbers count after the last ``=``."""
    tail = answer.rsplit("=", 1)[-1].lower()
    return any(re.search(rf"(?<![\w]){re.escape(word.lower())}(?![\w])", tail)
               for word in accepted)


def show_samples(demo):
    """Print the answers to the sample prompts and to a chat of several turns."""
    for label, prompts, ask in (("chat", CHAT_SAMPLES, demo.chat),
                                ("raw", RAW_SAMPLES, demo.complete)):
        for prompt in prompts:
            answer, stopped = ask(prompt)
            print(f"[{label}] {prompt!r} -> {answer!r}{'' if stopped else '  (did not stop)'}")
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for prompt in ("My name is Clara.", "What is 12 + 5?", "What is the capital of Peru?",
                   "Explain machine learning", "What is my name?"):
        messages.append({"role": "user", "content": prompt})
        answer, stopped = demo.chat(messages)
        messages.append({"role": "assistant", "content": answer})
        print(f"[turns] {prompt!r} -> {answer!r}{'' if stopped else '  (did not stop)'}")


def check_sums(demo, count):
    """Print how many of some random sums and differences, most of them seen, are right."""
    rng = random.Random(5)
    for limit in (20, 50, 100):
        right = 0
        for _ in range(count):
            a, b = sorted((rng.randrange(limit), rng.randrange(limit)), reverse=True)
            sign = rng.choice("+-")
            result = a + b if sign == "+" else a - b
            right += is_right(demo.chat(f"What is {a} {sign} {b}?")[0], [str(result)])
        print(f"{right}/{count} random sums and differences of numbers under {limit} right")


def main():
    """Run the evaluation in the types that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sums", type=int, default=0,
                        help="also ask so many random sums in each of three ranges")
    parser.add_argument("--markdown", action="store_true", help="print the results as a table")
    options = parser.parse_args()
    torch.set_num_threads(2)
    verify()
    items = Heldout().items
    worst = len(items)
    for dtype in options.dtype:
        demo = Demo(options.folder, getattr(torch, dtype))
        print(f"== {dtype}")
        if not options.markdown:
            show_samples(demo)
        right = 0
        for item in items:
            answer, stopped = demo.chat(item["prompt"])
            good = is_right(answer, item["accept"]) and stopped
            right += good
            verdict = "right" if good else "wrong"
            if options.markdown:
                mark = " (new phrasing)" if item.get("new_phrasing") else ""
                print(f"| {item['prompt']}{mark} | {answer} | {verdict} |")
            else:
                print(f"{verdict}: {json.dumps([item['prompt'], answer])}")
        print(f"{right}/{len(items)} held-out prompts right ({dtype})")
        if options.sums:
            check_sums(demo, options.sums)
        worst = min(worst, right)
    sys.exit(0 if worst >= NEEDED else 1)


if __name__ == "__main__":
    main()
