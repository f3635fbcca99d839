#!/bin/sh
# What `vitline launch ray` does, for a machine with Ray alone. The cluster must see these paths.
set -eu
export RAY_AUTH_MODE=token
exec ray job submit --address=https://ray.example.org --submission-id=vitline-small-f81f5805-a1 --no-wait --entrypoint-num-cpus=1 -- env --chdir=/project/vit vitline run /project/vit/runs/small/launch/config.yaml --address auto --preflight=full --stop-after=1d
