"""Requests that both sides of a comparison run."""

import random


def chats(count, longest=1024):
    """(prompt, output) lengths like those of ShareGPT in vLLM's first figures: 161 and 338 tokens
    on average, few of them long; the same ones every time."""
    rng = random.Random(161338)

    def length(mean):
        # A log-normal variable with a deviation of 1 has a mean of exp(mu + 1/2).
        return min(longest, max(4, round(rng.lognormvariate(0.0, 1.0) / 1.6487 * mean)))

    return [(length(161), length(338)) for _ in range(count)]
