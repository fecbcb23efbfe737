#!/usr/bin/env bash
# Posts Markdown files as one comment: on the pull request ARMS_PULL_REQUEST, else on the commit GITHUB_SHA. Nothing else
# here speaks to GitHub's API. Files that are not there are left out; without any, nothing is posted.
#     GITHUB_API_URL=... GITHUB_REPOSITORY=owner/name GITHUB_TOKEN=... ARMS_PULL_REQUEST=7 infra/ci/comment.sh FILE...
set -euo pipefail
cd "$(dirname "$0")/../.."

place=$GITHUB_API_URL/repos/$GITHUB_REPOSITORY
if [ -n "${ARMS_PULL_REQUEST:-}" ]; then
  place+=/issues/$ARMS_PULL_REQUEST/comments
else
  place+=/commits/$GITHUB_SHA/comments
fi
text=$(for file in "$@"; do if [ -f "$file" ]; then cat "$file" && echo; fi; done)
if [ -z "$text" ]; then
  echo "nothing to say: none of $* is there"
  exit 0
fi
limit=60000 # GitHub takes 65536 characters
if [ "${#text}" -gt "$limit" ]; then
  text="${text:0:limit}"$'\n\n(cut off here; the run'"'"'s log has it all)'
fi
# the token goes by a pipe, never as an argument that others on the machine could see
printf '%s' "$text" | python3 -c 'import json, sys; json.dump({"body": sys.stdin.read()}, sys.stdout)' |
  curl --silent --show-error --fail-with-body --retry 3 --output /dev/null --request POST --data-binary @- \
    --header "Accept: application/vnd.github+json" --header "Content-Type: application/json" \
    --config <(printf 'header = "Authorization: Bearer %s"\n' "$GITHUB_TOKEN") "$place"
echo "posted ${#text} characters"
