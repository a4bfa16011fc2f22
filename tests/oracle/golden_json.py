"""Writes golden files: readable, one place of one prompt a line."""

import json


def write(path, golden):
    """Writes the golden dictionary; floats keep eight significant digits."""
    path.write_text(render(golden) + "\n", encoding="utf-8")


def render(value, depth=0):
    """Objects and lists of objects go over several lines, down to the fourth level."""
    pad = " " * (depth + 1)
    if isinstance(value, dict) and depth < 3:
        items = [f"{pad}{json.dumps(k)}: {render(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value) and depth < 4:
        items = [pad + render(v, depth + 1) for v in value]
        return "[\n" + ",\n".join(items) + "\n" + " " * depth + "]"
    return json.dumps(shorten(value), ensure_ascii=False, separators=(",", ":"))


def shorten(value):
    """Rounds every float to eight significant digits."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {k: shorten(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shorten(v) for v in value]
    return value
