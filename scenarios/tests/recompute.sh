#!/bin/sh
# recompute.sh FILE: what a report says of a probe, from its raw samples alone (due_ns,answer_ns; no answer, no second
# field). Prints the longest silence in ms, then the median and the worst latency in ms.
set -eu
silence=$(cut -d, -f2 "$1" | grep '^[0-9]' | sort -n |
    awk 'NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { printf "%.6f", most / 1e6 }')
latencies=$(awk -F, '$2 ~ /^[0-9]/ { printf "%.6f\n", ($2 - $1) / 1e6 }' "$1" | sort -n)
count=$(echo "$latencies" | wc -l)
median=$(echo "$latencies" | sed -n "$(((count + 1) / 2))p")
echo "$silence $median $(echo "$latencies" | tail -n 1)"
