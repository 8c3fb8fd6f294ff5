#!/usr/bin/env bash
# Everything that wants a GPU: the steps of both networks lever by lever, the Lovász loss, the two forms of upsampling,
# and what the loader costs a step. Ends well inside 10 minutes on an H100. An argument replaces the device:
#
#     bash tests/benchmarks/gpu.sh [cuda | cpu]          # on a cpu with small tiles, to try the script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=../../.venv/bin/python
[ -x "$python" ] || python=python3
device=${1:-cuda}
if [ "$device" = cuda ]; then
    size=512 batch=16 pairs=512 rounds=10
else
    size=64 batch=2 pairs=16 rounds=1
fi
common=(--device "$device" --batch "$batch")

"$python" step.py "${common[@]}" --size "$size" --rounds "$rounds" --network albunet
"$python" step.py "${common[@]}" --size "$size" --rounds "$rounds" --network ternausnetv2
"$python" step.py "${common[@]}" --size "$size" --rounds "$rounds" --losses
[ "$device" = cpu ] || "$python" step.py "${common[@]}" --blocks
for network in albunet ternausnetv2; do
    "$python" fed.py "${common[@]}" --size "$size" --pairs "$pairs" --network "$network"
done
