#!/usr/bin/env bash
# Tells a Prefect server what it must know of this project: pools, automations, deployments. Again is harmless.
#     PREFECT_API_URL=http://HOST:4200/api infra/register.sh process|docker|kubernetes NUM_GPU_RUNS_AT_ONCE
# For docker and kubernetes ARMS_IMAGE and ARMS_CUDA_IMAGE name the images that runs of the two pools start from; without
# them the names that infra/pools/ has. Pools that are there keep their type and take over the template.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -ne 2 ] || [ -z "${PREFECT_API_URL:-}" ]; then
  echo "usage: PREFECT_API_URL=http://HOST:4200/api infra/register.sh process|docker|kubernetes NUM_GPU_RUNS_AT_ONCE" >&2
  exit 2
fi
type=$1 num_gpu_runs=$2
filled=$(mktemp --suffix=.json)
trap 'rm -f "$filled"' EXIT

for pool in cpu gpu; do
  template=infra/pools/$type-$pool.json
  [ -f "$template" ] || template=infra/pools/$type.json
  if [ ! -f "$template" ]; then
    echo "there is no template for pools of type '$type'; there are: process, docker, kubernetes" >&2
    exit 2
  fi
  sed -e "s|\"arms-pipeline:latest\"|\"${ARMS_IMAGE:-arms-pipeline:latest}\"|" \
    -e "s|\"arms-pipeline-cuda:latest\"|\"${ARMS_CUDA_IMAGE:-arms-pipeline-cuda:latest}\"|" "$template" >"$filled"
  prefect work-pool create "arms-$pool" --type "$type" --base-job-template "$filled" --overwrite
done
python -m flows.pools --gpu-slots "$num_gpu_runs"
for file in infra/automations/*.yaml; do
  name=$(sed -n 's/^name: //p' "$file")
  prefect automation inspect "$name" >/dev/null 2>&1 || prefect automation create --from-file "$file"
done
prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml
