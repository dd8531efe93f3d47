#!/usr/bin/env bash
# Makes .venv, merges the small experts of tools/lab_experts in three ways, and measures
# base, experts and merges on their tasks: out/quickstart/
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$REPO_ROOT"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"  # tiny models; JAX need not look for more

make_venv lab

step() {
  printf '\n$ python -m %s\n' "$*"
  "$VENV_PYTHON" -m "$@"
}

OUT=out/quickstart
rm -rf "$OUT"
mkdir -p "$OUT"
cp -r tools/lab_experts/seed_0 "$OUT/seed_0"  # evaluate writes its tables beside them
GROUP="$OUT/seed_0"
EXPERTS="$GROUP/rl_math/bf16,$GROUP/rl_reason/bf16,$GROUP/rl_tool/bf16,$GROUP/rl_mem/bf16"
IDS=math,reason,tool,mem
METHODS=(task_arithmetic resmerge retention)

for method in "${METHODS[@]}"; do
  step tools.merge --method="$method" --base="$GROUP/base/bf16" --experts="$EXPERTS" \
    --expert_ids="$IDS" --output="$OUT/$method"
done
step tools.lab evaluate --output="$OUT" \
  --models="$OUT/task_arithmetic,$OUT/resmerge,$OUT/retention"

cat <<TEXT

Done. Right answers by model and task, as a picture: $GROUP/evaluation.png
Each of $OUT/${METHODS[0]}, ${METHODS[1]} and ${METHODS[2]} is a Hugging Face folder with
README.md (the recipe), manifest.json (the run) and records.jsonl (what was measured on
each tensor). How the experts were made, and all methods on them: docs/lab.md

Next, with your own folders:
  source .venv/bin/activate
  python -m tools.merge --config=resmerge --base=BASE --experts=A,B,C --output=MERGED
  python -m tools.merge --help
TEXT
