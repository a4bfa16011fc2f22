"""Generator of the demo model's corpus: chats, single questions and raw text.

A document is a list of ``(role, text)`` pairs. The roles are ``system``, ``user`` and
``assistant`` for chats, and ``prompt`` and ``raw`` for plain text that follows the BOS token.
Everything is drawn from a seeded ``random.Random``; held-out prompts never appear (see
``Heldout``).

Run as a script, it prints some documents: ``python corpus.py --seed 1 --count 20``.
"""

import argparse
import json
import random
import re
from pathlib import Path

import facts
import topics
from stories import raw_story, story

HERE = Path(__file__).resolve().parent
SUM = re.compile(r"(\d+)\s*(\+|-|plus|minus|and|added to|take away)\s*(\d+)")
SYSTEMS = ["You are a helpful assistant.", "You are a friendly helper.", "Answer the question.",
           "You are a helpful AI assistant.", "You are a small demo model.",
           "Be helpful and brief.", "You are a teacher who explains things simply.",
           "You are a chatbot."]
PREFIXES = ["Please tell me: ", "Question: ", "Tell me: ", "I have a question. ", "Hi! ", "Hello, ",
            "Can you help me? ", "I would like to know: ", "Quick: ", "One more thing: ", "Hey, ",
            "Now tell me: ", "Next question: ", "I wonder: "]


def normalise(text):
    """Lower-case a text and reduce everything but letters, digits, + and - to single spaces."""
    return " ".join(re.findall(r"[a-z0-9]+|[+-]", text.lower()))


class Heldout:
    """The prompts that the corpus must not contain, and the test for it."""

    def __init__(self, path=HERE / "heldout.json"):
        self.items = json.loads(Path(path).read_text(encoding="utf-8"))
        self.prompts = [normalise(item["prompt"]) for item in self.items]
        self.sums, self.differences = set(), set()
        for item in self.items:
            match = SUM.search(item["prompt"])
            if match:
                self.add_pair(int(match[1]), match[2], int(match[3]))

    def add_pair(self, a, sign, b):
        """Hold out ``a + b`` (in both orders) or ``a - b``."""
        if sign in ("-", "minus"):
            self.differences.add((a, b))
        else:
            self.sums.update({(a, b), (b, a)})

    def allows(self, document):
        """Say whether a document contains neither a held-out prompt nor a held-out pair."""
        for _, text in document:
            plain = f" {normalise(text)} "
            if any(f" {prompt} " in plain for prompt in self.prompts):
                return False
            for a, sign, b in SUM.findall(text):
                minus = sign in ("-", "minus", "take away")
                if (int(a), int(b)) in (self.differences if minus else self.sums):
                    return False
        return True


def article(noun):
    """Put the indefinite article before a noun."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def plural(noun):
    """Return the plural of an animal that the tables name."""
    return {"mouse": "mice", "sheep": "sheep", "fish": "fish", "goose": "geese", "fly": "flies",
            "wolf": "wolves"}.get(noun, noun + "s")


def _table(rng, table, questions, answer, raws=()):
    """Draw an entry of a table and a phrasing; return ``(question, answer, raw or None)``."""
    key = rng.choice(list(table))
    value = table[key]
    fields = {"k": key, "v": value,
              "K": key[0].upper() + key[1:], "V": value[0].upper() + value[1:],
              "ak": article(key), "av": article(value), "Ak": article(key).capitalize(),
              "pk": plural(key), "Pk": plural(key).capitalize()}
    raw = rng.choice(raws) if raws else None
    if raw:
        raw = tuple(part.format(**fields) for part in raw)
    return rng.choice(questions).format(**fields), answer.format(**fields), raw


def capital(rng):
    """Ask for the capital of a country."""
    return _table(rng, facts.CAPITALS, [
        "What is the capital of {k}?", "What's the capital of {k}?", "Capital of {k}?",
        "Which city is the capital of {k}?", "What is {k}'s capital city?",
        "Name the capital of {k}.", "Tell me the capital of {k}.", "The capital of {k} is",
        "Do you know the capital of {k}?", "What is the capital city of {k}?", "{K} capital",
        "Can you tell me the capital of {k}?", "{K}: what is its capital?",
        "Could you tell me the name of the capital of {k}?", "Please name {k}'s capital."],
        "The capital of {k} is {v}.",
        [("The capital of {k} is", " {v}."), ("The capital city of {k} is", " {v}."),
         ("{V} is the capital of", " {k}.")])


def country(rng):
    """Ask for the country of a capital."""
    return _table(rng, facts.CAPITALS, [
        "{V} is the capital of which country?", "Which country has the capital {v}?",
        "Which country's capital is {v}?", "Of which country is {v} the capital?",
        "{V} is the capital of what country?", "In which country is {v}?",
        "Where is {v}?", "What country is {v} in?"],
        "{V} is the capital of {k}.")


def continent(rng):
    """Ask for the continent of a country."""
    return _table(rng, facts.CONTINENTS, [
        "On which continent is {k}?", "Which continent is {k} in?", "What continent is {k} on?",
        "Where in the world is {k}?", "{K} is in which continent?", "Where is {k}?",
        "On what continent can I find {k}?", "Name the continent of {k}."],
        "{K} is in {v}.", [("{K} is in", " {v}.")])


def language(rng):
    """Ask for the language of a country."""
    return _table(rng, facts.LANGUAGES, [
        "Which language do people speak in {k}?", "What language is spoken in {k}?",
        "What do people speak in {k}?", "What is the language of {k}?", "Language of {k}?",
        "Which language is spoken in {k}?", "What language do they speak in {k}?"],
        "People in {k} speak {v}.", [("People in {k} speak", " {v}.")])


def colour(rng):
    """Ask for the colour of a thing, in British or American spelling."""
    question, answer, raw = _table(rng, facts.COLOURS, [
        "What colour is {k}?", "Which colour is {k}?", "Tell me the colour of {k}.",
        "What is the colour of {k}?", "{K} has which colour?", "Name the colour of {k}.",
        "What colour does {k} have?", "Do you know the colour of {k}?", "Colour of {k}?",
        "I forgot the colour of {k}.", "I do not know which colour {k} has.",
        "Can you help me with the colour of {k}?"],
        "{K} is {v}.", [("The colour of {k} is", " {v}."), ("{K} is", " {v}.")])
    return question.replace("olour", rng.choice(["olour", "olor"])), answer, raw


def opposite(rng):
    """Ask for the opposite of a word, in either direction."""
    table = dict(facts.OPPOSITES)
    table.update({v: k for k, v in facts.OPPOSITES.items() if v not in table})
    return _table(rng, table, [
        "What is the opposite of {k}?", "What's the opposite of {k}?", "Opposite of {k}?",
        "Name the opposite of {k}.", "Tell me the opposite of {k}.", "{K} is the opposite of what?",
        "Which word is the opposite of {k}?", "Give me the opposite of {k}.",
        "Do you know the opposite of {k}?", "Can you name the opposite of {k}?"],
        "The opposite of {k} is {v}.", [("The opposite of {k} is", " {v}.")])


def sound(rng):
    """Ask for the sound of an animal."""
    return _table(rng, facts.SOUNDS, [
        "What sound does {ak} make?", "What does {ak} say?", "Which sound does {ak} make?",
        "What noise does {ak} make?", "How does {ak} sound?", "Tell me the sound of {ak}.",
        "What sound do {pk} make?", "What do {pk} say?"],
        "{Ak} says {v}.", [("{Ak} says", " {v}.")])


def baby(rng):
    """Ask for the name of a young animal."""
    return _table(rng, facts.BABIES, [
        "What do you call a baby {k}?", "What is a baby {k} called?", "A baby {k} is called",
        "What is the name of a baby {k}?", "What is a young {k} called?", "Name the baby of {ak}.",
        "What do we call a young {k}?", "Tell me what a baby {k} is called."],
        "A baby {k} is called {av}.", [("A baby {k} is called", " {av}.")])


def legs(rng):
    """Ask for the number of legs of an animal."""
    return _table(rng, facts.LEGS, [
        "How many legs does {ak} have?", "How many legs do {pk} have?", "{Ak} has how many legs?",
        "How many legs has {ak} got?", "What is the number of legs of {ak}?",
        "Tell me how many legs {ak} has.", "Count the legs of {ak}."],
        "{Ak} has {v} legs.", [("{Ak} has", " {v} legs.")])


def plurals(rng):
    """Ask for the plural of a noun."""
    return _table(rng, facts.PLURALS, [
        "What is the plural of {k}?", "What's the plural of {k}?", "Plural of {k}?",
        "Name the plural of {k}.", "Tell me the plural of {k}.", "Give me the plural of {k}.",
        "One {k}, two what?", "How do you say more than one {k}?"],
        "The plural of {k} is {v}.", [("The plural of {k} is", " {v}."), ("One {k}, two", " {v}.")])


def past(rng):
    """Ask for the past tense of a verb."""
    return _table(rng, facts.PASTS, [
        "What is the past tense of {k}?", "What's the past tense of {k}?", "Past tense of {k}?",
        "Name the past tense of {k}.", "Tell me the past tense of {k}.", "What is the past of {k}?",
        "Give me the past tense of {k}."],
        "The past tense of {k} is {v}.", [("The past tense of {k} is", " {v}.")])


def spelling(rng):
    """Ask to spell a word letter by letter."""
    table = {word: "-".join(word) for word in facts.SPELLINGS}
    return _table(rng, table, [
        "How do you spell {k}?", "Spell {k}.", "Spell the word {k}.", "How is {k} spelled?",
        "Can you spell {k}?", "Please spell {k} for me.", "How do I spell {k}?",
        "What is the spelling of {k}?"],
        "{v}", [("The word {k} is spelled", " {v}.")])


def category(rng):
    """Ask what kind of thing something is, or confirm that it is one."""
    table = facts.CATEGORIES
    if rng.random() < 0.5:
        return _table(rng, table, [
            "What kind of thing is {k}?", "What is {k}?", "Which group does {k} belong to?",
            "In which category is {k}?", "What type of thing is {k}?"], "{K} is {av}.")
    key = rng.choice(list(table))
    guess = table[key] if rng.random() < 0.5 else rng.choice(sorted(set(table.values())))
    question = rng.choice(["Is {k} {av}?", "Would you call {k} {av}?",
                           "Is it true that {k} is {av}?"])
    verdict = "Yes" if guess == table[key] else "No"
    return (question.format(k=key, av=article(guess)),
            f"{verdict}, {key} is {article(table[key])}.", None)


def sides(rng):
    """Ask for the number of sides of a shape."""
    return _table(rng, facts.SIDES, [
        "How many sides does {ak} have?", "How many sides has {ak}?", "{Ak} has how many sides?",
        "What is the number of sides of {ak}?", "Tell me how many sides {ak} has."],
        "{Ak} has {v} sides.", [("{Ak} has", " {v} sides.")])


def calendar(rng):
    """Ask for the day or month before or after another."""
    kind, names = rng.choice([("day", facts.DAYS), ("month", facts.MONTHS)])
    index = rng.randrange(len(names))
    step, word = rng.choice([(1, "after"), (-1, "before")])
    here, there = names[index], names[(index + step) % len(names)]
    verb = "follows" if step == 1 else "precedes"
    question = rng.choice([
        f"Which {kind} comes {word} {here}?", f"What {kind} comes {word} {here}?",
        f"What {kind} is {word} {here}?", f"Which {kind} is {word} {here}?",
        f"What comes {word} {here}?", f"Name the {kind} {word} {here}.", f"What {verb} {here}?",
        f"Which {kind} {verb} {here}?", f"Tell me the {kind} {word} {here}."])
    raw = (f"The {kind} {word} {here} is", f" {there}.")
    return question, f"The {kind} {word} {here} is {there}.", raw


def numbers(rng):
    """Ask for a number's word, its neighbour, or the larger of two numbers."""
    case = rng.randrange(4)
    if case == 0:
        n = rng.randrange(21)
        word = facts.NUMBER_WORDS[n]
        return rng.choice([(f"How do you write {n} in words?", f"{word.capitalize()}.", None),
                           (f"Write the number {word} in digits.", f"{n}.", None),
                           (f"What is {n} in words?", f"{word.capitalize()}.", None)])
    if case == 1:
        n = rng.randrange(1, 99)
        step, word = rng.choice([(1, "after"), (-1, "before")])
        question = rng.choice(["What number comes {w} {n}?", "Which number is {w} {n}?",
                               "Name the number {w} {n}."])
        return question.format(w=word, n=n), f"The number {word} {n} is {n + step}.", None
    if case == 2:
        a, b = rng.sample(range(100), 2)
        big = rng.random() < 0.5
        word = rng.choice(["bigger", "larger", "greater"]) if big else "smaller"
        question = rng.choice(["Which is {w}, {a} or {b}?", "What is {w}: {a} or {b}?",
                               "Which number is {w}, {a} or {b}?"])
        value = max(a, b) if big else min(a, b)
        return question.format(w=word, a=a, b=b), f"{value} is {word}.", None
    n = rng.randrange(1, 60)
    return f"Hello {n}", f"Hello {n}! How can I help you today?", None


def arithmetic(rng):
    """Ask for a sum or a difference of numbers under one hundred."""
    limit = rng.choice([10, 20, 50, 50, 100])
    a, b = rng.randrange(limit), rng.randrange(limit)
    if rng.random() < 0.1:
        a = rng.randrange(10)
    plus = rng.random() < 0.55
    if not plus and b > a:
        a, b = b, a
    result = a + b if plus else a - b
    sign = "+" if plus else "-"
    word = "plus" if plus else "minus"
    question = rng.choice([
        f"What is {a} {sign} {b}?", f"What is {a} {sign} {b}?", f"{a} {sign} {b}",
        f"{a} {sign} {b} =", f"Calculate {a} {sign} {b}.", f"How much is {a} {sign} {b}?",
        f"What is {a} {word} {b}?", f"How much is {a} {word} {b}?", f"What's {a} {sign} {b}?",
        f"Compute {a} {sign} {b}.", f"Solve {a} {sign} {b}.", f"What does {a} {sign} {b} make?",
        f"Can you calculate {a} {sign} {b}?", f"{a} {word} {b} is what?",
        f"Tell me {a} {word} {b}.", f"What is the result of {a} {sign} {b}?",
        f"What is the sum of {a} and {b}?" if plus else f"What is {a} take away {b}?"])
    return question, f"{a} {sign} {b} = {result}.", (f"{a} {sign} {b} =", f" {result}.")


def topic(rng):
    """Ask for a definition or an explanation."""
    name = rng.choice(list(topics.TOPICS))
    definition, detail, remark = topics.TOPICS[name]
    bare = re.sub(r"^(an?|the) ", "", name)
    shown = name if rng.random() < 0.7 else bare
    draw = rng.random()
    if draw < 0.45:
        question, answer = rng.choice(topics.WHAT_IS), f"{definition} {detail}"
    elif draw < 0.92:
        question, answer = rng.choice(topics.EXPLAIN), f"{definition} {detail} {remark}"
    else:
        question, answer = rng.choice(topics.BRIEF), definition
    question = question.format(x=shown)
    return question, answer, (question, "\n" + answer)


def misc(rng):
    """Ask one of the single questions."""
    questions, answer = rng.choice(facts.MISC)
    return rng.choice(questions), answer, None


def small_talk(rng):
    """Greet, thank, take leave or ask who the model is."""
    questions, answer = rng.choice(facts.SMALL_TALK)
    return rng.choice(questions), answer, None


def introduction(rng):
    """Give one's own name and be greeted by it."""
    name = rng.choice(facts.NAMES)
    question = rng.choice(["Hello, my name is {n}.", "My name is {n}.", "Hi, I am {n}.",
                           "I'm {n}.", "Hello, I am {n}!", "Hi! My name is {n}."]).format(n=name)
    place = rng.choice(facts.PLACES)
    job = rng.choice(["a teacher", "a student", "a baker", "a doctor", "a writer", "an engineer",
                      "a painter", "a gardener"])
    raw = ("Hello, my name is", f" {name} and I am {job}. I live in a small {place} and I like to "
           f"{rng.choice(['read', 'sing', 'cook', 'swim', 'walk', 'draw'])}.")
    return question, f"Hello {name}! Nice to meet you.", raw


def tale(rng):
    """Ask for a short story."""
    question, answer = story(rng)
    return question, answer, None


def completion(rng):
    """Open a sentence that the model is to finish."""
    opening = rng.choice(list(topics.COMPLETIONS))
    ending = rng.choice(topics.COMPLETIONS[opening])
    return opening, opening + ending, (opening, ending)


KINDS = [(arithmetic, 40), (capital, 9), (country, 4), (continent, 4), (language, 4), (colour, 5),
         (opposite, 6), (sound, 3), (baby, 3), (legs, 3), (plurals, 4), (past, 4), (spelling, 4),
         (category, 4), (sides, 1.5), (calendar, 5), (numbers, 4), (topic, 16), (misc, 5),
         (small_talk, 4), (introduction, 2.5), (tale, 5), (completion, 1.5)]
FUNCTIONS = [kind for kind, _ in KINDS]
WEIGHTS = [weight for _, weight in KINDS]


def vary(rng, question):
    """Change the case, the final mark or the opening of a question now and then."""
    draw = rng.random()
    if draw < 0.08:
        question = question[0].lower() + question[1:]
    elif draw < 0.12:
        question = question.lower()
    elif draw < 0.24:
        question = rng.choice(PREFIXES) + question
    if rng.random() < 0.1:
        question = question.rstrip("?.!")
    return question


def exchange(rng, weights):
    """Return one question and its answer, as a two-message list."""
    question, answer, _ = rng.choices(FUNCTIONS, weights)[0](rng)
    return [("user", vary(rng, question)), ("assistant", answer)]


def memory(rng, weights, turns):
    """Return an exchange that tells a fact, others after it, and one that asks for it again."""
    name, colour_name = rng.choice(facts.NAMES), rng.choice(["red", "blue", "green", "yellow"])
    tell, reply, ask, answer = rng.choice([
        (f"My name is {name}.", f"Hello {name}! Nice to meet you.",
         rng.choice(["What is my name?", "Do you remember my name?", "Who am I?"]),
         f"Your name is {name}."),
        (f"My favourite colour is {colour_name}.", f"{colour_name.capitalize()} is a nice colour!",
         rng.choice(["What is my favourite colour?", "Which colour do I like?"]),
         f"Your favourite colour is {colour_name}.")])
    middle = [message for _ in range(turns) for message in exchange(rng, weights)]
    return [("user", tell), ("assistant", reply), *middle, ("user", ask), ("assistant", answer)]


def document(rng, weights):
    """Return one document; it may contain held-out material."""
    draw = rng.random()
    if draw < 0.22:
        for _ in range(20):
            _, _, raw = rng.choices(FUNCTIONS, weights)[0](rng)
            if raw:
                return [("prompt", raw[0]), ("raw", raw[1])]
    if draw < 0.25:
        return [("raw", raw_story(rng))]
    head = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.2 else []
    if draw < 0.88:
        return head + exchange(rng, weights)
    if draw < 0.92:
        return head + memory(rng, weights, rng.choice([0, 1, 2, 3]))
    turns = rng.choice([2, 2, 3, 3, 4, 5, 6]) if draw < 0.998 else rng.randrange(20, 45)
    return head + [message for _ in range(turns) for message in exchange(rng, weights)]


def documents(seed, count, heldout=None, sums=None):
    """Yield ``count`` documents of which none contains held-out material.

    ``sums`` is the weight of arithmetic among the kinds of questions.
    """
    weights = WEIGHTS if sums is None else [sums, *WEIGHTS[1:]]
    heldout = heldout or Heldout()
    rng = random.Random(seed)
    made = 0
    while made < count:
        candidate = document(rng, weights)
        if heldout.allows(candidate):
            made += 1
            yield candidate


def verify(seed=0, count=20000):
    """Assert by a second, simpler test that documents hold no held-out prompt or pair."""
    heldout = Heldout()
    for item in documents(seed, count, heldout):
        text = " ".join(re.sub(r"[^a-z0-9+ -]", " ", m[1].lower()) for m in item)
        text = " " + " ".join(text.split()) + " "
        for prompt in heldout.prompts:
            assert f" {prompt} " not in text, (prompt, item)
        for a, b in heldout.sums:
            for form in (f"{a} + {b}", f"{a} plus {b}", f"sum of {a} and {b}"):
                assert f" {form} " not in text, (form, item)
        for a, b in heldout.differences:
            for form in (f"{a} - {b}", f"{a} minus {b}", f"{a} take away {b}"):
                assert f" {form} " not in text, (form, item)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--verify", action="store_true", help="check the held-out split instead")
    options = parser.parse_args()
    if options.verify:
        verify(options.seed, options.count)
        print("no held-out prompt or pair found")
    else:
        for entry in documents(options.seed, options.count):
            print(entry)
