#!/bin/sh
# Runs fuzz targets one after the other: `fuzz/run.sh SECONDS [TARGET …]`; without a target, all of them.
# What is found lies in fuzz/artifacts/TARGET; what was learned stays in fuzz/corpus/TARGET.
set -eu
cd "$(dirname "$0")"
seconds=${1:?usage: run.sh SECONDS [TARGET …]}
shift
# Sanitizers need an unstable flag; this lets a stable compiler take it.
export RUSTC_BOOTSTRAP=1
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed 's/\.rs$//')
failed=
for target; do
    echo "== $target"
    mkdir -p "corpus/$target"
    cargo fuzz run ${FUZZ_OPTIONS-} "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=5 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1 ||
        failed="$failed $target"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
