"""Short stories with varied names, places and things."""

import facts

# Heroes: what is asked for, how the story calls it, and what it likes to do.
HEROES = {
    "AI": ("a small AI", "answer questions"), "artificial intelligence": ("a small AI", "learn"),
    "a robot": ("a little robot", "help people"), "a cat": ("a curious cat", "climb trees"),
    "a dog": ("a brave dog", "run in the fields"), "a dragon": ("a young dragon", "fly at night"),
    "a bird": ("a blue bird", "sing in the morning"), "a fox": ("a clever fox", "ask riddles"),
    "a mouse": ("a tiny mouse", "collect crumbs"), "a bear": ("a gentle bear", "eat honey"),
    "a girl": ("a kind girl", "read books"), "a boy": ("a cheerful boy", "build boats"),
    "a king": ("an old king", "count the stars"), "a princess": ("a bold princess", "ride horses"),
    "a pirate": ("a friendly pirate", "sail the sea"), "a wizard": ("a wise wizard", "mix colours"),
    "a computer": ("an old computer", "play chess"), "a star": ("a bright star", "shine"),
}
ASKS = ["Write a story about {x}", "Write a story about {x}.", "Tell me a story about {x}.",
        "Write a short story about {x}.", "Tell me a short story about {x}.",
        "Can you tell me a story about {x}?", "Make up a story about {x}.",
        "I want a story about {x}."]
OPEN_ASKS = ["Tell me a story.", "Tell me a short story.", "Write a story.", "Write a short story.",
             "Can you tell me a story?", "Once upon a time"]


def _tell(rng, hero, likes):
    """Return a story about a hero."""
    name, friend = rng.sample(facts.NAMES, 2)
    place, thing = rng.choice(facts.PLACES), rng.choice(facts.OBJECTS)
    start = (f"Once upon a time there was {hero} named {name} who lived in a {place}. "
             f"{name} liked to {likes}.")
    middle, end = rng.choice([
        (f"One day {name} found an old {thing}. It belonged to {friend}, who had looked for it for "
         f"a long time.",
         f"{name} gave the {thing} back, and the two became good friends."),
        (f"One night a storm came and all the lights went out. {friend} was lost and afraid.",
         f"{name} held up a {thing} and showed the way home. Everyone was happy."),
        (f"But {name} was lonely. One morning {friend} knocked on the door and asked for help with "
         f"a broken {thing}.",
         f"Together they repaired it, and {name} was never lonely again."),
        (f"One day {friend} asked a question that nobody could answer. {name} thought about it all "
         f"night.",
         f"In the morning {name} knew the answer, and the whole {place} cheered."),
    ])
    return f"{start} {middle} {end} The end."


def story(rng):
    """Return a request for a story and the story."""
    if rng.random() < 0.25:
        hero, likes = rng.choice(list(HEROES.values()))
        return rng.choice(OPEN_ASKS), _tell(rng, hero, likes)
    topic = rng.choice(list(HEROES)) if rng.random() < 0.8 else "AI"
    return rng.choice(ASKS).format(x=topic), _tell(rng, *HEROES[topic])


def raw_story(rng):
    """Return a story as plain text."""
    return _tell(rng, *rng.choice(list(HEROES.values())))
