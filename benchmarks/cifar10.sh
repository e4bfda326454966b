#!/bin/sh
# The paper's comparison on CIFAR-10 at 32 px: three generators at equal budget (no condition, class, representation),
# each without and with guidance, scored by the Fréchet distance of 5,000 samples.
#
#   sh benchmarks/cifar10.sh TRAIN TEST INCEPTION_WEIGHTS OUT
#
# TRAIN and TEST are folders of PNG files with one folder a class; INCEPTION_WEIGHTS is an Inception-v3 file (the whole
# network, or its part up to Mixed_6e: EXTRACTOR=inception-768, the default here). Run again to go on after a stop.
# About three hours on two CPU cores with bf16. SCALES are the guidance scales that are tried.
set -eu
TRAIN=$1; TEST=$2; WEIGHTS=$3; OUT=$4
EXTRACTOR=${EXTRACTOR:-inception-768}
N=${N:-5000}
SCALES=${SCALES:-2}
mkdir -p "$OUT"

# train COMMAND NAME PRESET FLAGS…
train() {
    command=$1; name=$2; preset=$3; shift 3
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    "$command" --config "$preset" --out "$OUT/$name" "$@"
}

# score NAME FOLDER
score() {
    [ -f "$OUT/metrics-$1.json" ] || rcg-eval --generated "$2" --reference "$OUT/test.npz" --metrics fid,kid,prc \
        --extractor "$EXTRACTOR" --extractor-weights "$WEIGHTS" --precision bf16 --limit "$N" --out "$OUT/metrics-$1.json"
}

# draw NAME MODEL FLAGS…
draw() {
    name=$1; model=$2; shift 2
    if [ -d "$OUT/$name" ]; then set -- "$@" --resume; fi
    rcg-sample --model "$OUT/$model" --out "$OUT/$name" --num-images "$N" --seed 0 --batch-size 256 --precision auto "$@"
    score "$name" "$OUT/$name"
}

train rcg-train-encoder   encoder   encoder-cifar10   --data "$TRAIN"
train rcg-train-tokenizer tokenizer tokenizer-cifar10 --data "$TRAIN"
rcg-cache --data "$TRAIN" --out "$OUT/cache" --image-size 32 --encoder "$OUT/encoder" --tokenizer "$OUT/tokenizer" \
    --views 2 --batch-size 256
train rcg-train-rdm rdm rdm-cifar10 --data "$OUT/cache"
for condition in representation none class; do
    train rcg-train-generator "generator-$condition" generator-cifar10 --data "$OUT/cache" \
        --tokenizer "$OUT/tokenizer" --condition "$condition"
done
rcg-assemble --generator "$OUT/generator-representation" --tokenizer "$OUT/tokenizer" --encoder "$OUT/encoder" \
    --rdm "$OUT/rdm" --out "$OUT/model-representation" --overwrite
for condition in none class; do
    rcg-assemble --generator "$OUT/generator-$condition" --tokenizer "$OUT/tokenizer" --out "$OUT/model-$condition" --overwrite
done

# The floor: real training images against real test images. The reference's statistics are kept on the way.
[ -f "$OUT/test.npz" ] || rcg-eval --generated "$TRAIN" --reference "$TEST" --metrics fid,kid,prc --limit "$N" \
    --extractor "$EXTRACTOR" --extractor-weights "$WEIGHTS" --precision bf16 --out "$OUT/metrics-floor.json" \
    --save-reference-stats "$OUT/test.npz" --save-features
# The tokenizer alone: test images encoded and decoded.
python benchmarks/tokenizer_reconstructions.py --data "$TEST" --tokenizer "$OUT/tokenizer" --num-images "$N" --out "$OUT/reconstructed"
score reconstructed "$OUT/reconstructed"

draw none           model-none
draw class          model-class
draw representation model-representation
for scale in $SCALES; do
    draw "class-guided-$scale"          model-class          --guidance-scale "$scale"
    draw "representation-guided-$scale" model-representation --guidance-scale "$scale"
done
python benchmarks/cifar10_table.py "$OUT"
