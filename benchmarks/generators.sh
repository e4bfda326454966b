#!/bin/sh
# The paper's Table 1 at small scale: one family of image generators at equal training compute, from nothing, clusters,
# representations and classes, without and with guidance. 5,000 samples against 5,000 test images of CIFAR-10, and what a
# CIFAR-10 classifier sees in them.
#
#   sh benchmarks/generators.sh TRAIN TEST INCEPTION_WEIGHTS RESNET56_WEIGHTS OUT
#
# TRAIN and TEST are folders of PNG files with one folder a class. OUT/encoder is trained unless it is there. PRESET is one
# of rcg/configs (it names the family); TOKENIZER the preset of the tokenizer of a family that needs one, or "autoencoder"
# for one of latents, trained as OUT/tokenizer unless it is there, with the encoder as judge; DECODER the preset of a flow
# decoder that is trained after it; what they make of test images is scored, too. CLUSTERS is the number of clusters, SCALES
# the guidance scales that are tried, FLAGS what else
# rcg-train-generator is told. Run again to go on after a stop. At equal operations (1.5e15 each):
#
#   pixel-dit:  FLAGS="--steps 7400 --ema-decay 0.9995" sh benchmarks/generators.sh …
#   EDM, ADM:   PRESET=generator-edm-cifar10 (generator-adm-cifar10) sh benchmarks/generators.sh …
#   DiT, LDM:   PRESET=generator-dit-cifar10 (generator-ldm-cifar10) TOKENIZER=autoencoder sh benchmarks/generators.sh …
#   MAGE:       PRESET=generator-cifar10 TOKENIZER=tokenizer-cifar10-64 DECODER=decoder-cifar10-64 \
#               FLAGS="--steps 10600 --warmup 100 --ema-decay 0.999" …
set -eu
[ $# -ge 5 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
TRAIN=$1; TEST=$2; INCEPTION=$3; RESNET=$4; OUT=$5
PRESET=${PRESET:-generator-pixel-cifar10}
ENCODER=${ENCODER:-encoder-cifar10-long}
TOKENIZER=${TOKENIZER:-}
CLUSTERS=${CLUSTERS:-100}
CONDITIONS=${CONDITIONS:-none cluster representation class}
SCALES=${SCALES:-1.5 2}
N=${N:-5000}
FLAGS=${FLAGS:-}
DECODER=${DECODER:-}
mkdir -p "$OUT"

# train COMMAND NAME PRESET FLAGS…
train() {
    command=$1; name=$2; preset=$3; shift 3
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    "$command" --config "$preset" --out "$OUT/$name" "$@"
}

# score NAME
score() {
    [ -f "$OUT/metrics-$1.json" ] || rcg-eval --generated "$OUT/$1" --reference "$OUT/test.npz" \
        --metrics fid,prc,dc --limit "$N" --extractor inception-768 --extractor-weights "$INCEPTION" --precision bf16 \
        --out "$OUT/metrics-$1.json"
}

# draw NAME CONDITION FLAGS…
draw() {
    name=$1; condition=$2; shift 2
    if [ -d "$OUT/$name" ]; then set -- "$@" --resume; fi
    rcg-sample --model "$OUT/model-$condition" --out "$OUT/$name" --num-images "$N" --seed 0 --batch-size 250 \
        --precision auto "$@"
    score "$name"
}

[ -f "$OUT/encoder/config.json" ] || train rcg-train-encoder encoder "$ENCODER" --data "$TRAIN"
[ -f "$OUT/test.npz" ] || rcg-eval --generated "$TRAIN" --reference "$TEST" --metrics fid,prc,dc --limit "$N" \
    --extractor inception-768 --extractor-weights "$INCEPTION" --precision bf16 --out "$OUT/metrics-floor.json" \
    --make-stats "$OUT/test.npz"
codes=--images; tokens=
if [ "$TOKENIZER" ]; then
    if [ -f "$OUT/tokenizer/config.json" ]; then :
    elif [ "$TOKENIZER" = autoencoder ]; then
        python benchmarks/autoencoder.py --data "$TRAIN" --perceptual-encoder "$OUT/encoder" --out "$OUT/tokenizer"
    else
        train rcg-train-tokenizer tokenizer "$TOKENIZER" --data "$TRAIN" --perceptual-encoder "$OUT/encoder"
    fi
    decoder=$OUT/tokenizer
    if [ "$DECODER" ]; then
        decoder=$OUT/decoder
        [ -f "$decoder/config.json" ] || train rcg-train-tokenizer decoder "$DECODER" --data "$TRAIN" --decoder-of "$OUT/tokenizer"
    fi
    [ -f "$OUT/metrics-samples-reconstructed.json" ] || python benchmarks/reconstructions.py --data "$TEST" \
        --tokenizer "$decoder" --num-images "$N" --out "$OUT/samples-reconstructed"
    score samples-reconstructed
    tokens="--tokenizer $decoder"; codes="--tokenizer $OUT/tokenizer"
fi
# shellcheck disable=SC2086
rcg-cache --data "$TRAIN" --out "$OUT/cache" --image-size 32 $codes --encoder "$OUT/encoder" --clusters "$CLUSTERS" \
    --views 2 --batch-size 256
for condition in $CONDITIONS; do
    # shellcheck disable=SC2086
    train rcg-train-generator "$condition" "$PRESET" --data "$OUT/cache" --condition "$condition" $tokens $FLAGS
    set --
    if [ "$condition" = representation ]; then
        train rcg-train-rdm rdm rdm-cifar10 --data "$OUT/cache"
        set -- --rdm "$OUT/rdm" --encoder "$OUT/encoder"
    fi
    # shellcheck disable=SC2086
    rcg-assemble --generator "$OUT/$condition" $tokens --out "$OUT/model-$condition" --overwrite "$@"
    draw "samples-$condition" "$condition"
    [ "$condition" = none ] && continue
    for scale in $SCALES; do
        draw "samples-$condition-guided-$scale" "$condition" --guidance-scale "$scale"
    done
done
python benchmarks/recognised.py --weights "$RESNET" --images "$TEST" "$OUT"/samples-* --limit "$N" --out "$OUT/verdict.json"
python benchmarks/generators_table.py "$OUT"
