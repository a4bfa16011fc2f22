"""Train the demo model on the CPU, for a given number of minutes, and export it.

The learning rate follows the time spent, so that training ends on schedule on a busy machine too.
``--resume`` goes on from the last checkpoint, which keeps the time spent so far.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer

from corpus import documents
from model import create, export

FOLDER = Path(__file__).resolve().parents[1]
IGNORED = -100
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


def encode(tokenizer, document):
    """Return the token ids of a document and the labels, which leave out what users write."""
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    end = tokenizer.token_to_id("<|end|>")

    def ids_of(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    ids, labels = [bos], [IGNORED]
    if document[-1][0] == "raw":
        prompt = document[0][1] if document[0][0] == "prompt" else ""
        ids += ids_of("".join(text for _, text in document)) + [eos]
        hidden = len(ids_of(prompt)) if prompt else 0
        return ids, labels + [IGNORED] * hidden + ids[1 + hidden:]
    for role, text in document:
        answer = role == "assistant"
        body = ids_of(text) + [eos if answer else end]
        ids += [tokenizer.token_to_id(ROLES[role]), *body]
        labels += [IGNORED] + (body if answer else [IGNORED] * len(body))
    return ids, labels


def batches(tokenizer, chunk, size, tokens, sums, limit=2048):
    """Yield the batches of one chunk of the corpus: inputs and labels of similar length."""
    chosen = documents(1000 + chunk, size, sums=sums)
    encoded = [encode(tokenizer, item) for item in chosen]
    encoded = sorted((pair for pair in encoded if len(pair[0]) <= limit), key=lambda p: len(p[0]))
    groups, start = [], 0
    for stop in range(1, len(encoded) + 1):
        longest = len(encoded[min(stop, len(encoded) - 1)][0])
        if stop == len(encoded) or (stop + 1 - start) * longest > tokens:
            groups.append(encoded[start:stop])
            start = stop
    random.Random(chunk).shuffle(groups)
    for group in groups:
        width = max(len(ids) for ids, _ in group)
        inputs = torch.zeros(len(group), width, dtype=torch.long)
        labels = torch.full((len(group), width), IGNORED)
        for row, (ids, targets) in enumerate(group):
            inputs[row, :len(ids)] = torch.tensor(ids)
            labels[row, :len(ids)] = torch.tensor(targets)
        yield inputs, labels


def loss_of(model, inputs, labels):
    """Return the mean cross entropy, computed at the labelled positions only."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    kept = targets != IGNORED
    logits = model.lm_head(hidden[:, :-1][kept])
    return functional.cross_entropy(logits.float(), targets[kept])


def rate(done, peak, warmup=0.02):
    """Return the learning rate after a part ``done`` (0 to 1) of the training time."""
    if done < warmup:
        return peak * max(done / warmup, 0.01)
    part = min((done - warmup) / (1 - warmup), 1.0)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


def save_checkpoint(path, model, optimizer, progress):
    """Write a checkpoint so that a crash never leaves a broken one."""
    partial = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "progress": progress}, partial)
    partial.replace(path)


def main():
    """Train, with checkpoints, and export the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=70, help="training time in all")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--runs", type=Path, default=Path("/tmp/demo-model-run"),
                        help="folder of the checkpoint and the log")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the exported model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--chunk", type=int, default=8000, help="documents drawn at a time")
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    parser.add_argument("--export", action="store_true",
                        help="only export the checkpoint, even of an unfinished training")
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 autocast")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.runs.mkdir(parents=True, exist_ok=True)
    checkpoint = options.runs / "checkpoint.pt"
    if options.export:
        export(torch.load(checkpoint, weights_only=True)["model"], options.out)
        return
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = create()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=options.rate, betas=(0.9, 0.98), fused=True)
    progress = {"seconds": 0.0, "steps": 0, "tokens": 0, "chunk": 0}
    if options.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = saved["progress"]
    total = options.minutes * 60
    begin = time.monotonic() - progress["seconds"]
    saved_at, losses = progress["seconds"], []
    while progress["seconds"] < total:
        progress["chunk"] += 1
        sums = 40 if progress["seconds"] < 0.72 * total else 90  # facts are learnt sooner
        for inputs, labels in batches(tokenizer, progress["chunk"], options.chunk, options.batch,
                                      sums):
            for group in optimizer.param_groups:
                group["lr"] = rate(progress["seconds"] / total, options.rate)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
                loss = loss_of(model, inputs, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            progress["steps"] += 1
            progress["tokens"] += inputs.numel()
            progress["seconds"] = time.monotonic() - begin
            if progress["steps"] % 50 == 0:
                entry = {**progress, "loss": round(sum(losses) / len(losses), 4),
                         "tokens_per_second": round(progress["tokens"] / progress["seconds"])}
                losses = []
                print(json.dumps(entry), flush=True)
            if progress["seconds"] - saved_at > options.save_every:
                save_checkpoint(checkpoint, model, optimizer, progress)
                saved_at = progress["seconds"]
            if progress["seconds"] >= total:
                break
    save_checkpoint(checkpoint, model, optimizer, progress)
    export(model.state_dict(), options.out)
    print(json.dumps({"finished": progress, "out": str(options.out)}))


if __name__ == "__main__":
    main()
