#!/usr/bin/env bash
# On a machine with a GPU where nothing of this is installed: wheels of what tidegate needs lie in .whl, the peers' in
# .bench/wheels (both travel as ignored paths). Arguments go to serve_models.py.
set -uo pipefail
pip() { python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "$@" 2>&1 | tail -2; }
pip --target /tmp/site .whl/*.whl
# After tidegate's own, so that where both name a package tidegate's version is the one that stays.
[ -d .bench/wheels ] && pip --target /tmp/peers-site .bench/wheels/*.whl
info=/tmp/site/tidegate-0.1.0.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: tidegate\nVersion: 0.1.0\n' >"$info/METADATA"
python3 - "$info/entry_points.txt" <<'PYTHON'
import sys, tomllib
points = tomllib.load(open("pyproject.toml", "rb"))["project"]["entry-points"]
with open(sys.argv[1], "w") as file:
    for group, names in points.items():
        file.write(f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in names.items()))
PYTHON
export PYTHONPATH="$PWD/benchmarks/gpu:/tmp/site:$PWD/batching:$PWD/sdk:$PWD/transports:/tmp/peers-site" PYTHONUNBUFFERED=1
# Mosec looks for its server where this interpreter keeps its scripts.
[ -x /tmp/peers-site/bin/mosec ] && cp /tmp/peers-site/bin/mosec "$(python3 -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null
python3 benchmarks/gpu/serve_models.py "$@"
status=$?
[ -n "${OUT:-}" ] && cp /tmp/serve_models.log "$OUT/" 2>/dev/null
exit $status
