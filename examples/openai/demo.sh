#!/usr/bin/env bash
# Serves a model by `vrust serve`, holds a streamed chat with it by the official OpenAI client, and
# stops the server by SIGTERM. Usage: demo.sh BUILD_FOLDER MODEL
set -euo pipefail
build=$1 model=$2
here=$(dirname "$0")
[ -x "$build/venv/bin/python" ] || python3 -m venv "$build/venv"
"$build/venv/bin/pip" -q install --disable-pip-version-check -r "$here/requirements.txt"
log=$(mktemp)
"$build/bin/vrust" serve "$model" --host 127.0.0.1 --port 0 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 300); do
    url=$(sed -n 's/.*msg=ready .*at=\([^ ]*\) .*/\1/p' "$log")
    [ -n "$url" ] && break
    kill -0 $server 2>/dev/null || { cat "$log"; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { echo "the server did not start"; cat "$log"; exit 1; }
echo "vrust serve $model: $(sed -n 's/.*msg=ready .*took=/ready in /p' "$log"), at $url"
"$build/venv/bin/python" "$here/chat.py" "$url/v1" "Hello" "Tell me about the small AI"
kill -TERM $server
wait $server
echo "vrust serve has drained and ended"
