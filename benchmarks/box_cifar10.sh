#!/bin/sh
# The pipeline in the box, rcg/cifar10, from nothing, on two CPU cores: encoder, RDM and generator, then 5,000 samples against
# 5,000 test images of CIFAR-10, and what a CIFAR-10 classifier sees in them.
#
#   sh benchmarks/box_cifar10.sh TRAIN TEST INCEPTION_WEIGHTS RESNET56_WEIGHTS OUT
#
# TRAIN and TEST are folders of PNG files with one folder a class. STEPS are the generator's, ENCODER_STEPS the encoder's, SCALE and
# INTERVAL the generator's guidance, RDM_SCALE that of the RDM, towards one of 100 clusters of the representations. (The model in
# the box was made in two rounds: this with ENCODER_STEPS=6000 and STEPS=7400, and then the same again with --start-from and the
# weights of the first round, 6,000 and 5,400 steps.)
# Run again to go on after a stop. Afterwards benchmarks/pack_model.py puts OUT/model into the box.
set -eu
[ $# -ge 5 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
TRAIN=$1; TEST=$2; INCEPTION=$3; RESNET=$4; OUT=$5
STEPS=${STEPS:-12800}
ENCODER_STEPS=${ENCODER_STEPS:-12000}
SCALE=${SCALE:-4}
INTERVAL=${INTERVAL:-0.2 1.0}
RDM_SCALE=${RDM_SCALE:-1.5}
N=${N:-5000}
PROCESSES=${PROCESSES:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$OUT"

# train COMMAND NAME PRESET FLAGS… (a command of this library, run by PROCESSES processes)
train() {
    command=$1; name=$2; preset=$3; shift 3
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    torchrun --nproc-per-node "$PROCESSES" -m "rcg.scripts.$command" --config "$preset" --out "$OUT/$name" "$@"
}

train train_encoder encoder encoder-cifar10-long --data "$TRAIN" --eval-data "$TEST" --steps "$ENCODER_STEPS"
[ -f "$OUT/cache/manifest.json" ] || rcg-cache --data "$TRAIN" --out "$OUT/cache" --image-size 32 --images \
    --encoder "$OUT/encoder" --views 2 --batch-size 250 --clusters 100
train train_generator generator generator-pixel-cifar10 --data "$OUT/cache" --condition representation \
    --steps "$STEPS" --ema-decay 0.9995
train train_rdm rdm rdm-cifar10-flow --data "$OUT/cache" --condition cluster --steps 3000
rcg-assemble --generator "$OUT/generator" --rdm "$OUT/rdm" --encoder "$OUT/encoder" --out "$OUT/model" --overwrite \
    --guidance-scale "$SCALE" --guidance-interval $INTERVAL --rdm-guidance-scale "$RDM_SCALE" --half
set -- # what is there already is gone on with
if [ -d "$OUT/samples" ]; then set -- --resume; fi
rcg-sample --model "$OUT/model" --out "$OUT/samples" --num-images "$N" --seed 0 --batch-size 250 "$@"
rcg-eval --generated "$OUT/samples" --reference "$TEST" --metrics fid,prc,dc --limit "$N" --extractor inception-768 \
    --extractor-weights "$INCEPTION" --precision bf16 --out "$OUT/metrics.json"
python benchmarks/recognised.py --weights "$RESNET" --images "$TEST" "$OUT"/samples --limit "$N" --out "$OUT/verdict.json"
