#!/usr/bin/env bash
# What a changed list of VLMs asks for and costs: printed, and as Markdown in .arms/ci/plan.md. Asks nobody, starts nothing.
# Ends with 1 where it is refused: too dear, or others would be asked as well. By hand:
#     ARMS_SINCE=origin/main ARMS_BUDGET_USD=5 infra/ci/plan.sh
# ARMS_SINCE        the commit to compare with
# ARMS_BUDGET_USD   refuse where asking should cost more; empty: no limit
# ARMS_MAY_SPEND    true: whatever it costs (the label `spend`)
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"

report=.arms/ci/plan.md errors=.arms/ci/errors.txt
mkdir -p .arms/ci
rm -f "$report"
options=(--since "$(infra/ci/since.sh)" --markdown "$report")
if [ "${ARMS_MAY_SPEND:-}" != true ] && [ -n "${ARMS_BUDGET_USD:-}" ]; then
  options+=(--budget-usd "$ARMS_BUDGET_USD")
fi
code=0
python -m flows.retrain "${options[@]}" --dry-run 2>"$errors" || code=$?
cat "$errors" >&2
if [ ! -f "$report" ]; then
  printf '### Retraining could not be planned\n\n```\n%s\n```\n' "$(cat "$errors")" >"$report"
elif [ "$code" = 1 ] && grep --quiet 'beyond the budget' "$report"; then
  printf '\nTo allow it as it stands now, add the label `spend` (a later commit needs it added again).\n' >>"$report"
fi
exit "$code"
