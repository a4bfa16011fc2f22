"""Trains the tiny tokenizers and records what transformers makes of texts, ids and chats."""

import collections
import json
import shutil

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer

import chat_fixtures
import golden_json
from cases import VOCAB
from checkpoint import write_json
from tokenizer_texts import BYTES_THEN_TEXT, TRAINING, texts_with

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                  "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
LLAMA2_SPECIAL = ("<unk>", "<s>", "</s>")
DATE = "26 Jul 2024"
NAMES = ("tokenizer-bpe", "tokenizer-chatml", "tokenizer-gpt2", "tokenizer-llama2")


def make_all(root):
    """Writes every tokenizer folder with its goldens."""
    for name in NAMES:
        if (root / name).exists():
            shutil.rmtree(root / name)
        (root / name).mkdir(parents=True)
    make_llama3_style(root / "tokenizer-bpe")
    make_chatml_style(root / "tokenizer-chatml")
    make_gpt2_files(root / "tokenizer-gpt2", root / "tokenizer-bpe" / "tokenizer.json")
    make_llama2_style(root / "tokenizer-llama2")
    for name in NAMES:
        golden = record(root / name)
        golden_json.write(root / name / "golden.json", golden)
        counts = {key: len(golden[key]) for key in ("encode", "decode", "chat")}
        print(f"{name:16} vocab {golden['vocab_size']} {counts}", flush=True)


def check_all(root):
    """Repeats the tokenizer goldens from the committed folders: they must be equal."""
    for name in NAMES:
        want = json.loads((root / name / "golden.json").read_text())
        assert json.loads(golden_json.render(record(root / name))) == want, f"{name} differs"
        print(f"{name:16} same", flush=True)


def train_byte_level(split, size):
    """A byte-level BPE of `size` tokens behind a split by regular expression."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TRAINING.splitlines(keepends=True), trainer)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def make_llama3_style(folder):
    """Llama 3: split by regex, ignore_merges, a begin token added by the post-processor."""
    plain = ("<mark>", "<mark>!")
    tokenizer = train_byte_level(LLAMA3_SPLIT, VOCAB - len(LLAMA3_SPECIAL) - len(plain))
    tokenizer.model.ignore_merges = True
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in LLAMA3_SPECIAL])
    tokenizer.add_tokens([AddedToken(plain[0], lstrip=True, rstrip=True, normalized=False),
                          AddedToken(plain[1], single_word=True, normalized=False)])
    begin = LLAMA3_SPECIAL[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1",
            special_tokens=[(begin, tokenizer.token_to_id(begin))]),
    ])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": added_tokens(tokenizer),
        "bos_token": begin,
        "chat_template": chat_fixtures.LLAMA3,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|eot_id|>",
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


def make_chatml_style(folder):
    """Qwen: NFC, digits one by one, no begin token, the template in a file of its own."""
    added = len(CHATML_SPECIAL) + len(CHATML_PLAIN)
    tokenizer = train_byte_level(QWEN_SPLIT, VOCAB - added)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in CHATML_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in CHATML_PLAIN])
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_merges_as_strings(folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": False,
        "added_tokens_decoder": added_tokens(tokenizer),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    })
    (folder / "chat_template.jinja").write_text(chat_fixtures.CHATML, encoding="utf-8")


def write_merges_as_strings(path):
    """Older releases wrote a merge as "a b", newer ones as ["a", "b"]: one fixture has the old."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    write_json(path, content)


def make_gpt2_files(folder, source):
    """GPT-2 as published: vocab.json and merges.txt, one special token, nothing else."""
    model = json.loads(source.read_text(encoding="utf-8"))["model"]
    vocab = dict(model["vocab"])
    vocab["<|endoftext|>"] = len(vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_llama2_style(folder):
    """Llama 2: SentencePiece's BPE with byte fallback, spaces as lower blocks, no pre-tokenizer."""
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(common_characters(56).split("\n"), trainers.BpeTrainer(
        vocab_size=VOCAB, show_progress=False,
        special_tokens=[*LLAMA2_SPECIAL, *byte_tokens]))
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in LLAMA2_SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added_tokens(tokenizer),
        "bos_token": "<s>",
        "chat_template": chat_fixtures.LLAMA2,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 4096,
        "pad_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    })


def common_characters(count):
    """The training text with its rarer characters blanked; the trainer's own limit breaks ties
    by chance."""
    seen = collections.Counter(TRAINING)
    kept = set(sorted(seen, key=lambda c: (-seen[c], c))[:count]) | {"\n"}
    return "".join(c if c in kept else " " for c in TRAINING)


def added_tokens(tokenizer):
    """The added_tokens_decoder entry of tokenizer_config.json."""
    return {
        str(token_id): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
            "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }


def load(folder):
    """Loads a folder as a user would; GPT-2's two files name no class, so that is given."""
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    return GPT2Tokenizer.from_pretrained(folder)


def record(folder):
    """The golden file of one tokenizer."""
    tokenizer = load(folder)
    added = [t.content for _, t in sorted(tokenizer.added_tokens_decoder.items())]
    golden = {
        "tokenizer": folder.name,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "encode": [record_encode(tokenizer, text) for text in texts_with(added)],
        "decode": record_decode(tokenizer),
        "chat": [],
    }
    if (folder / "tokenizer.json").exists():
        same_as_library(folder, golden["encode"])
    if tokenizer.chat_template:
        golden["chat"] = [record_chat(tokenizer, *c)
                          for c in chat_fixtures.conversations(tokenizer.chat_template)]
    return golden


def same_as_library(folder, encoded):
    """transformers must not have changed what tokenizer.json says."""
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for entry in encoded:
        for key, special in (("ids", False), ("ids_with_special", True)):
            ids = library.encode(entry["text"], add_special_tokens=special).ids
            assert ids == entry[key], f"{folder.name}: {entry}"


def record_encode(tokenizer, text):
    """Ids of a text both ways, and what they decode to."""
    with_special = tokenizer(text, add_special_tokens=True)["input_ids"]
    return {
        "text": text,
        "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "ids_with_special": with_special,
        "decoded": decode(tokenizer, with_special, False),
        "decoded_skip_special": decode(tokenizer, with_special, True),
    }


def record_decode(tokenizer):
    """Texts of every prefix of some ids, and of runs of ids that no text gives."""
    entries = []
    for text in BYTES_THEN_TEXT:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        entries += [record_ids(tokenizer, ids[:n]) for n in range(1, len(ids) + 1)]
    size = len(tokenizer)
    for start in (0, 3, 100, 130, 200, 250, size - 12):
        entries.append(record_ids(tokenizer, [(start + 7 * i) % size for i in range(9)]))
        entries.append(record_ids(tokenizer, [start]))
    return entries


def record_ids(tokenizer, ids):
    """What some ids decode to."""
    return {"ids": ids, "text": decode(tokenizer, ids, False),
            "text_skip_special": decode(tokenizer, ids, True)}


def decode(tokenizer, ids, skip_special):
    """Plain decoding, without the clean-up of English punctuation."""
    return tokenizer.decode(
        ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)


def record_chat(tokenizer, name, messages, options):
    """A rendered conversation with its ids, or the template's refusal."""
    options = {"date_string": DATE, "add_generation_prompt": False, **options}
    entry = {"name": name, "messages": messages, "options": options}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # jinja2's own classes, by template
        return {**entry, "error": str(error)}
    return {**entry, "text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
