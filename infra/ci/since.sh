#!/usr/bin/env bash
# Prints the commit to compare with: ARMS_SINCE if git knows it, else the one before HEAD (a new branch names none, and a
# forced push one that is gone). What the champion chooses from is compared as well, so no added VLM is missed by it.
set -euo pipefail
cd "$(dirname "$0")/../.."

if git rev-parse --verify --quiet --end-of-options "${ARMS_SINCE:?names the commit to compare with}^{commit}"; then
  exit 0
fi
echo "git does not know $ARMS_SINCE; comparing with the commit before this one" >&2
git rev-parse --verify HEAD~1
