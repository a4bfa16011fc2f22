"""Holds a streamed chat with an OpenAI-compatible server. Usage: chat.py BASE_URL [MESSAGE..]"""

import sys

from openai import OpenAI


def main():
    base_url, *messages = sys.argv[1:]
    client = OpenAI(base_url=base_url, api_key="dummy")  # vrust asks for none by default.
    model = client.models.list().data[0].id
    chat = []
    for message in messages or ["Hello!"]:
        print(f"user: {message}\nassistant:", end="", flush=True)
        chat.append({"role": "user", "content": message})
        stream = client.chat.completions.create(
            model=model, messages=chat, stream=True, max_tokens=48, temperature=0,
            stream_options={"include_usage": True})
        answer = ""
        for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    print(choice.delta.content, end="", flush=True)
                    answer += choice.delta.content
            if chunk.usage:
                print(f"\n({chunk.usage.completion_tokens} tokens)")
        if not answer:
            sys.exit("the model said nothing")
        chat.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
