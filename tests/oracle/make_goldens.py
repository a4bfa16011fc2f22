"""Makes the tiny seeded checkpoints and tokenizers of tests/golden and their goldens.

    python make_goldens.py                     rewrite everything
    python make_goldens.py --check             run transformers on the committed folders, compare
    python make_goldens.py --search CASE       find the first good seed for a case
    python make_goldens.py --check-mutations   show that the goldens notice wrong models
"""

import argparse
import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
import transformers

import golden_json
import mutations
import record
import tokenizer_fixtures
from cases import CASES, GREEDY_TOKENS, PROMPT_LENGTHS, SAME_GOLDENS
from checkpoint import make_prompts, make_tensors, write_folder, write_json

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
MIN_MARGIN = 5e-3
"""Smallest gap in logits between the greedy token and the next: far above float32 rounding."""
MIN_DISTINCT = 8
"""Fewest different tokens in each greedy continuation."""
MIN_PEAK = 0.5
"""Least mean of the largest attention probability."""
CHECK_TOLERANCE = 1e-4
"""Largest difference of a logprob when another machine or torch repeats the goldens."""


def main():
    """Reads the command line and runs one of the modes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--check-mutations", action="store_true")
    parser.add_argument("--search", metavar="CASE")
    parser.add_argument("--only", metavar="CASE", help="leave the other cases alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cases = [c for c in CASES if arguments.only in (None, c.name)]
    if arguments.search:
        search(next(c for c in CASES if c.name == arguments.search))
    elif arguments.check_mutations:
        mutations.check(cases, GOLDEN)
    elif arguments.check:
        check(cases)
    else:
        make(cases, with_tokenizers=arguments.only is None)


def make(cases, with_tokenizers):
    """Writes the folders and their goldens."""
    if with_tokenizers:
        tokenizer_fixtures.make_all(GOLDEN)
    for case in cases:
        folder = GOLDEN / case.name
        write_folder(folder, case.config, make_tensors(case, case.seed), case)
        golden = record_case(case, folder, case.seed)
        assert not shortcomings(case, golden), f"{case.name}: {shortcomings(case, golden)}"
        if case.several_eos:
            add_several_eos(folder, case.config, golden)
        if case.tokenizer:
            copy_tokenizer(GOLDEN / case.tokenizer, folder)
        golden_json.write(folder / "golden.json", golden)
        print(summary(golden), flush=True)
    names = {case.name for case in cases}
    for first, second in (pair for pair in SAME_GOLDENS if names.issuperset(pair)):
        assert prompts_of(first) == prompts_of(second), f"{first} and {second} differ"


def record_case(case, folder, seed):
    """Runs the case's prompts and gathers the golden file."""
    model = record.load_model(folder)
    prompts = [record.record_prompt(model, p, GREEDY_TOKENS)
               for p in make_prompts(case, seed, PROMPT_LENGTHS)]
    golden = {
        "case": case.name,
        "model_type": case.config["model_type"],
        "seed": seed,
        "storage_dtype": case.storage,
        "compute_dtype": "float32",
        "min_margin": min(p["min_margin"] for p in prompts),
        "mean_max_attention": record.mean_max_attention(model, prompts[-1]["prompt_token_ids"]),
        "float64_difference": record.largest_difference(folder, torch.float64, prompts),
        "prompts": prompts,
    }
    if case.storage == "bfloat16":
        golden["bfloat16"] = record.record_bf16(folder, prompts)
    return golden


def shortcomings(case, golden):
    """What makes a seed unfit, in words."""
    distinct = min(len(set(p["greedy_token_ids"])) for p in golden["prompts"])
    found = []
    if golden["min_margin"] < MIN_MARGIN:
        found.append(f"margin {golden['min_margin']:.1e}")
    if distinct < MIN_DISTINCT:
        found.append(f"only {distinct} distinct tokens")
    if golden["mean_max_attention"] < MIN_PEAK and not case.flat_attention:
        found.append(f"flat attention {golden['mean_max_attention']:.2f}")
    return found


def search(case, limit=200):
    """Prints why seeds fail until one does not."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / case.name
        for seed in range(limit):
            write_folder(folder, case.config, make_tensors(case, seed), case)
            golden = record_case(case, folder, seed)
            print(seed, shortcomings(case, golden) or summary(golden), flush=True)
            if not shortcomings(case, golden):
                return


def add_several_eos(folder, config, golden):
    """Picks stop ids that occur mid-way in two continuations, and notes where each would stop."""
    stop_ids = [config["eos_token_id"]]
    early = {t for prompt in golden["prompts"] for t in prompt["greedy_token_ids"][:8]}
    for prompt in golden["prompts"][1:3]:
        late = prompt["greedy_token_ids"][8:]
        stop_ids.append(next(t for t in late if t not in early and t not in stop_ids))
    write_json(folder / "generation_config.json", {
        "bos_token_id": config["bos_token_id"],
        "do_sample": True,
        "eos_token_id": stop_ids,
        "temperature": 0.6,
        "top_p": 0.9,
    })
    golden["eos_token_ids"] = stop_ids
    for prompt in golden["prompts"]:
        tokens = prompt["greedy_token_ids"]
        prompt["first_eos"] = next((i for i, t in enumerate(tokens) if t in stop_ids), None)


def copy_tokenizer(source, folder):
    """Copies the tokenizer's own files, not its goldens."""
    for path in sorted(source.iterdir()):
        if path.name != "golden.json":
            shutil.copyfile(path, folder / path.name)


def check(cases):
    """Repeats the goldens from the committed folders and compares."""
    for case in cases:
        folder = GOLDEN / case.name
        want = json.loads((folder / "golden.json").read_text())
        got = record_case(case, folder, want["seed"])
        largest = 0.0
        for one, other in zip(got["prompts"], want["prompts"], strict=True):
            for key in ("prompt_token_ids", "greedy_token_ids"):
                assert one[key] == other[key], f"{case.name}: {key} differ"
            for key in ("steps", "prompt_logprobs"):
                pairs = zip(one[key], other[key], strict=True)
                gaps = [abs(a["logprob"] - b["logprob"]) for a, b in pairs if a]
                largest = max([largest, *gaps])
        assert largest <= CHECK_TOLERANCE, f"{case.name}: logprobs differ by {largest}"
        print(f"{case.name:16} same tokens, logprobs within {largest:.1e}", flush=True)
    tokenizer_fixtures.check_all(GOLDEN)


def prompts_of(name):
    """The recorded prompts of a case."""
    return json.loads((GOLDEN / name / "golden.json").read_text())["prompts"]


def summary(golden):
    """One line about a golden file."""
    distinct = [len(set(p["greedy_token_ids"])) for p in golden["prompts"]]
    spread = np.mean([s["logprob"] for p in golden["prompts"] for s in p["steps"]])
    return (f"{golden['case']:16} seed {golden['seed']:3} margin {golden['min_margin']:.4f} "
            f"peak {golden['mean_max_attention']:.2f} distinct {distinct} "
            f"logprob {spread:.2f} f64 {golden['float64_difference']:.1e}")


if __name__ == "__main__":
    main()
