#!/usr/bin/env bash
# Runs a command from the checkout on a machine that has no package index: wheels of what it lacks lie in .whl.
#   benchmarks/from_wheels.sh python3 -m pytest -m gpu tests/gpu tests/sdk
#   benchmarks/from_wheels.sh python3 benchmarks/fronts.py --fronts 1,2,4,8
set -euo pipefail
site=/tmp/site
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target $site .whl/*.whl
# What an installation would say of the package: its version, and the doors by their names.
info=$site/tidegate-0.dist-info
mkdir -p $info
printf 'Metadata-Version: 2.1\nName: tidegate\nVersion: 0\n' > $info/METADATA
python3 - > $info/entry_points.txt <<'PY'
import tomllib

doors = tomllib.load(open("pyproject.toml", "rb"))["project"]["entry-points"]["tidegate.transports"]
print("[tidegate.transports]", *(f"{name} = {place}" for name, place in doors.items()), sep="\n")
PY
export PYTHONPATH="$site:$PWD/batching:$PWD/sdk:$PWD/transports" PYTHONUNBUFFERED=1
exec "$@"
