#!/usr/bin/env bash
# A handler in a pipe: one line of JSON in, one line out, in full batches, without a service.
#
#     bash examples/pipes.sh
#
# Each recipe prints what it has made; some use jq and GNU parallel, and say so where these are missing. Standard output
# holds results only, so that everything can be piped on; how far it is and what failed goes to standard error (-q keeps
# it quiet). The exit status is 0 when all went well and 1 when some lines failed.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
has() { command -v "$1" >/dev/null || { echo "no $1 here"; false; }; }

# 300 sentences of Python's documentation, one JSON text a line.
python - >"$folder/in.jsonl" <<'END'
import json
from pydoc_data.topics import topics

sentences = [" ".join(part.split()) for text in topics.values() for part in text.split(". ")]
print("\n".join(map(json.dumps, sentences[:300])))
END

echo "== a file to a file"
tidegate run -q multi_handler.py:page <"$folder/in.jsonl" >"$folder/out.jsonl"
sort "$folder/out.jsonl" | uniq -c | sort -rn | sed -n 1,3p

echo "== one field of an object in, the result beside it out"
has jq && jq -c '{id: input_line_number, text: .}' "$folder/in.jsonl" |
    tidegate run -q multi_handler.py:page --input-field text --output-field page |
    jq -r 'select(.page == "assert") | "\(.id)\t\(.text[:60])"' | sed -n 1,3p

echo "== cut off, and gone on with"
# --output instead of >, which would empty the file before tidegate starts.
head -n 100 "$folder/out.jsonl" >"$folder/part.jsonl"
tidegate run -q multi_handler.py:page --input "$folder/in.jsonl" --output "$folder/part.jsonl" --resume
cmp "$folder/part.jsonl" "$folder/out.jsonl" && echo "the same $(wc -l <"$folder/part.jsonl") lines"

echo "== in files of 100 lines, each of which can be done again by itself"
split -l 100 "$folder/in.jsonl" "$folder/piece-"
for piece in "$folder"/piece-??; do
    tidegate run -q multi_handler.py:page --input "$piece" --output "$piece.out" --resume
done
cat "$folder"/piece-??.out | cmp - "$folder/out.jsonl" && echo "the same from $(ls "$folder"/piece-??.out | wc -l) files"

echo "== a line that fails fails alone"
printf '%s\n' '"a for loop"' '42' '"a lambda"' | tidegate run -q multi_handler.py:page || echo "status $?"

echo "== in parts, several at a time, in order: as one does over several machines (parallel --sshlogin)"
has parallel && parallel --pipe -N 150 --jobs 2 --keep-order --will-cite tidegate run -q multi_handler.py:page \
    <"$folder/in.jsonl" | cmp - "$folder/out.jsonl" && echo "the same again"
