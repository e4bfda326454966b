#!/bin/sh
# What a generator gains by a condition of more than the projection: PixelDiT on CIFAR-10 at equal training, judged by images from
# the representations of real test images, so that no RDM has a part in it.
#
#   sh benchmarks/representation_parts.sh TRAIN TEST ENCODER INCEPTION_WEIGHTS RESNET56_WEIGHTS OUT
#
# TRAIN and TEST are folders of images, ENCODER what rcg-train-encoder made. Run again to go on after a stop.
set -eu
[ $# -ge 6 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
TRAIN=$1; TEST=$2; ENCODER=$3; INCEPTION=$4; RESNET=$5; OUT=$6
STEPS=${STEPS:-1500}
N=${N:-1000}
PROCESSES=${PROCESSES:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
HERE=$(dirname "$0")
X="--extractor inception-768 --extractor-weights $INCEPTION"
mkdir -p "$OUT"
[ -f "$OUT/train.npz" ] || rcg-eval --reference "$TRAIN" --limit 5000 --make-stats "$OUT/train.npz" $X

# row NAME PARTS…
row() {
    run=$OUT/$1; shift
    mkdir -p "$run"
    [ -d "$run/encoder" ] || python - "$ENCODER" "$run/encoder" "$@" <<'PY'
import sys
from rcg.encoders.ssl_encoder import SSLEncoder
SSLEncoder.from_pretrained(sys.argv[1], parts=sys.argv[3:]).save_pretrained(sys.argv[2])
PY
    rcg-cache --data "$TRAIN" --out "$run/cache" --image-size 32 --images --encoder "$run/encoder" --views 2 --batch-size 250
    resume=; if [ -d "$run/generator/training" ]; then resume=--resume; fi
    torchrun --nproc-per-node "$PROCESSES" -m rcg.scripts.train_generator --config generator-pixel-cifar10 --data "$run/cache" \
        --condition representation --steps "$STEPS" --ema-decay 0.998 --out "$run/generator" $resume
    python "$HERE/reconstructions.py" --data "$TEST" --generator "$run/generator" --encoder "$run/encoder" --num-images "$N" \
        --out "$run/drawn"
    rcg-eval --generated "$run/drawn" --reference "$OUT/train.npz" --metrics fid,prc $X --out "$run/metrics.json"
    python "$HERE/recognised.py" --weights "$RESNET" --images "$run/drawn" --limit "$N" --out "$run/verdict.json"
}

row projection projection
row features features
row quarters projection quarters
