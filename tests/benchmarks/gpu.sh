#!/usr/bin/env bash
# Everything that wants a GPU: what tests cannot show without, the steps of the networks lever by lever, torch's ways to
# recompute and to synchronise batch norm beside ours, the Lovász loss, the two forms of upsampling, and what the loader
# costs a step. Some 18 minutes on an H100, 4 of them compiling. An argument replaces the device:
#
#     bash tests/benchmarks/gpu.sh [cuda | cpu]          # on a cpu with small tiles, to try the script: 6 minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=.venv/bin/python
[ -x "$python" ] || python=python3
device=${1:-cuda}
if [ "$device" = cuda ]; then
    size=512 batch=16 large=64 pairs=512 rounds=1 compiled=--compiled collect=1500 epochs=50
    "$python" -m pytest -q tests/integration/test_gpu.py tests/unit/models/test_synchronisation.py
else
    size=64 batch=2 large=2 pairs=16 rounds=1 compiled='' collect=4 epochs=1
fi
run() { # run NAME ARGUMENT ...
    local name=$1
    shift
    echo "$name.py $*" >&2
    "$python" "tests/benchmarks/$name.py" --device "$device" "$@"
}

# shellcheck disable=SC2086 # a flag or none
{
    run step --size "$size" --network albunet --batch "$batch" --rounds "$rounds"
    run step --size "$size" --network albunet --batch $((2 * batch)) --rounds "$rounds" --brief $compiled
    run step --size "$size" --network ternausnetv2 --batch $((batch / 2)) --rounds "$rounds" --brief
    run step --size "$size" --network unet --batch "$batch" --rounds "$rounds" --brief $compiled
    run step --size "$size" --network ternausnetv2 --batch $((batch / 2)) --rounds "$rounds" --recomputation
    run batch_norms --size "$size" --batch "$batch"
    run lovasz_loop --size "$size" --batch "$batch" --rounds "$rounds"
    run upsampling --batch "$batch"
    run fed --size "$size" --network albunet --batch "$large" --pairs "$pairs" $compiled
    run fed --size "$size" --network ternausnetv2 --batch "$batch" --pairs "$pairs"
    run fed --size "$size" --network unet --batch "$batch" --pairs "$pairs"
    # From a job's start to its report, and which libraries it loads.
    "$python" tests/benchmarks/mapped_libraries.py \
        "$python" tests/benchmarks/peak_memory.py --pairs "$collect" "model.epochs=$epochs" "runtime.device=$device"
}
