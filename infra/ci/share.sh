#!/usr/bin/env bash
# Shares what was done: data and run cache go to the DVC remote, so that the run on main after a merge neither asks nor
# trains again what the pull request's did. With ARMS_PROMOTE=true, dvc.lock, which names them, is committed and pushed to
# ARMS_BRANCH as well. Without a DVC remote nothing is: the lock would name files that nobody else has. By hand:
#     ARMS_PROMOTE=true ARMS_BRANCH=main infra/ci/share.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"

if [ -z "$(dvc config core.remote || true)" ]; then
  echo "no DVC remote (dvc remote add --default NAME URL): nothing is shared"
  exit 0
fi
dvc push --run-cache
if [ "${ARMS_PROMOTE:-}" != true ]; then
  exit 0
fi
branch=${ARMS_BRANCH:?names the branch to push to}
git add dvc.lock
if git diff --cached --quiet -- dvc.lock; then
  echo "dvc.lock is as it was: nothing to commit"
  exit 0
fi
export GIT_AUTHOR_NAME=${GIT_AUTHOR_NAME:-retrain} GIT_AUTHOR_EMAIL=${GIT_AUTHOR_EMAIL:-retrain@localhost}
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
git commit --quiet --message "Retrained: dvc.lock of $(git rev-parse --short HEAD)" -- dvc.lock
if ! git push --quiet origin "HEAD:$branch"; then
  git fetch --quiet origin "$branch" # somebody pushed meanwhile; a lock that they changed, too, stops here
  git rebase --quiet FETCH_HEAD
  git push --quiet origin "HEAD:$branch"
fi
