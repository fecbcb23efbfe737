#!/usr/bin/env bash
# Does what plan.sh said, in this process, and writes what came of it to .arms/ci/result.md: the comparison of challenger
# and champion, and all metrics before and after. By hand, after infra/ci/plan.sh and with the same variables:
#     ARMS_SINCE=origin/main ARMS_PROMOTE=false infra/ci/train.sh
# ARMS_PROMOTE   true: the three-way rule may make the challenger the champion, and removed VLMs are retired; else neither
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"

report=.arms/ci/result.md
mkdir -p .arms/ci
rm -f "$report"
since=$(infra/ci/since.sh)
options=(--since "$since" --markdown "$report" --here)
if [ "${ARMS_MAY_SPEND:-}" != true ] && [ -n "${ARMS_BUDGET_USD:-}" ]; then
  options+=(--budget-usd "$ARMS_BUDGET_USD")
fi
if [ "${ARMS_PROMOTE:-}" != true ]; then
  options+=(--no-promote)
fi
if [ -n "$(dvc config core.remote || true)" ]; then
  options+=(--sync) # what another machine trained is taken from the remote, not trained again
fi
code=0
python -m flows.retrain "${options[@]}" || code=$?
if [ "$code" = 0 ]; then
  {
    printf '\n### Metrics that changed since `%s`\n\n' "${since:0:10}"
    dvc metrics diff --md "$since" || echo "not known: the metrics of that commit are not at hand"
  } >>"$report"
fi
exit "$code"
