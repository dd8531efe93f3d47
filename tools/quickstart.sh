#!/usr/bin/env bash
# Makes .venv, two tiny expert groups (tied and untied), and merges them: out/quickstart/
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$REPO_ROOT"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"  # tiny models; JAX need not look for more

make_venv ''

step() {
  printf '\n$ python -m %s\n' "$*"
  "$VENV_PYTHON" -m "$@"
}

merge_tiny_group() {
  local name="$1" tied="$2" folder="out/quickstart/$1"
  local group="$folder/group" merged="$folder/merged"
  local experts="$group/expert_math,$group/expert_code,$group/expert_tool"
  local flags=(--config=resmerge --base="$group/base" --experts="$experts"
    --output="$merged" --overwrite)
  printf '\n== A tiny Qwen2 base and three experts, %s embeddings ==\n' "$name"
  rm -rf "$group"
  step tools.make_group --shape=tiny --tied="$tied" --experts=3 --output="$group"
  step tools.plan "${flags[@]}"
  step tools.merge "${flags[@]}"
  step tools.compare "$group/base" "$merged" || (($? == 1)) # 1: they differ
}

merge_tiny_group tied true
merge_tiny_group untied false

cat <<'TEXT'

Done. Two expert groups were made and merged with ResMerge:
  out/quickstart/tied/merged     a Hugging Face folder, embeddings tied
  out/quickstart/untied/merged   the same with its own lm_head
Each holds README.md (the recipe), manifest.json (the run) and records.jsonl (what was
measured on each tensor).

Next, with your own folders:
  source .venv/bin/activate
  python -m tools.merge --config=resmerge --base=BASE --experts=A,B,C --output=MERGED
  python -m tools.merge --help
TEXT
