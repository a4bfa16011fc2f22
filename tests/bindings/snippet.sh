#!/usr/bin/env bash
# snippet.sh LANGUAGE WORD: prints the one block of README.md in a language that holds a word.
set -euo pipefail
cd "$(dirname "$0")/../.."
awk -v language="$1" -v word="$2" '
    $0 == "```" language { inside = 1; block = ""; next }
    $0 == "```" && inside { inside = 0; if (index(block, word)) { found++; text = block }; next }
    inside { block = block $0 "\n" }
    END {
        if (found != 1) {
            print "README.md: " found + 0 " blocks of " language " with " word > "/dev/stderr"
            exit 1
        }
        printf "%s", text
    }' README.md
