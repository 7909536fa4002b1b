#!/usr/bin/env bash
# The tests that need a GPU, on a machine where the package is not installed: wheels of what is missing lie in .whl.
set -uo pipefail
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl 2>&1 | tail -1
export PYTHONPATH="/tmp/site:$PWD/batching:$PWD/sdk:$PWD/transports" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=index,name,uuid,memory.total --format=csv
python3 -c 'import torch; print(torch.__version__, torch.cuda.device_count())'
python3 -m pytest -q -s -p no:cacheprovider -W ignore::DeprecationWarning tests/gpu tests/sdk/test_devices.py tests/sdk/workers/test_shared_memory.py -m gpu
