#!/bin/sh
# The paper's figures on ImageNet 256 px from the published files: convert, draw 50,000 images without and with guidance,
# score them against the ADM reference statistics. For a machine with one or more GPUs.
#
#   sh benchmarks/imagenet256.sh SIZE FILES STATS OUT
#
# SIZE is b or l; FILES a folder with the downloaded MAGE and RDM file (and the encoder's and tokenizer's, which are then
# checked against those that MAGE carries) and nothing else; STATS is VIRTUAL_imagenet256_labeled.npz. All is computed as
# the reference does (--exact). Run again to go on after a stop. The paper: FID/IS 3.98/177.8 and 3.19/214.9 guided (B), 3.44/186.9 and 2.15/253.4 guided (L).
#
# By environment: GPUS processes (default: all GPUs, or 1), N images, BATCH per process, WEIGHTS of Inception where they
# cannot be downloaded, CONVERT_FLAGS for rcg-convert.
set -eu
[ $# -ge 4 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
SIZE=$1; FILES=$2; STATS=$3; OUT=$4
N=${N:-50000}
BATCH=${BATCH:-128}
GPUS=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
PRESET=${PRESET:-rcg-$SIZE}
mkdir -p "$OUT"

# shellcheck disable=SC2086
[ -d "$OUT/model" ] || rcg-convert --config "$PRESET" "$FILES"/* --out "$OUT/model" ${CONVERT_FLAGS:-}

# measure NAME FLAGS…
measure() {
    name=$1; shift
    if [ -f "$OUT/$name/sampling.json" ]; then set -- "$@" --resume; fi
    torchrun --nproc-per-node "$GPUS" -m rcg.scripts.sample --model "$OUT/model" --out "$OUT/$name" --num-images "$N" \
        --seed 0 --batch-size "$BATCH" --exact --rounding truncate "$@"
    [ -f "$OUT/metrics-$name.json" ] || rcg-eval --generated "$OUT/$name" --reference "$STATS" --metrics fid,isc \
        --out "$OUT/metrics-$name.json" ${WEIGHTS:+--extractor-weights "$WEIGHTS"}
}

measure unguided --guidance-scale 1
measure guided
