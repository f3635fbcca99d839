#!/bin/sh
# Does what `vitline launch local` did; finished work is skipped.
set -eu
cd /project/vit
exec vitline run /project/vit/runs/small/launch/config.yaml --stop-after=90m
