#!/bin/sh
# The paper's comparison on CIFAR-10 at 32 px: three generators at equal budget (no condition, class, representation),
# each without and with guidance, scored by the Fréchet distance of 5,000 samples: against test images, and against test
# images that went through the tokenizer, which no generator can do better than.
#
#   sh benchmarks/cifar10.sh TRAIN TEST INCEPTION_WEIGHTS OUT
#
# TRAIN and TEST are folders of PNG files with one folder a class; INCEPTION_WEIGHTS is an Inception-v3 file (the whole
# network, or its part up to Mixed_6e: EXTRACTOR=inception-768, the default here). Run again to go on after a stop.
# About four hours on two CPU cores with bf16. SCALES are the guidance scales that are tried.
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

# score NAME FOLDER REFERENCE
score() {
    report=$OUT/metrics-$1-$3.json
    [ -f "$report" ] || rcg-eval --generated "$2" --reference "$OUT/$3.npz" --metrics fid,kid,prc --limit "$N" \
        --extractor "$EXTRACTOR" --extractor-weights "$WEIGHTS" --precision bf16 --out "$report"
}

# floor REFERENCE GENERATED FOLDER: real against real; the reference's statistics are kept on the way
floor() {
    rcg-eval --generated "$2" --reference "$3" --metrics fid,kid,prc --limit "$N" --extractor "$EXTRACTOR" \
        --extractor-weights "$WEIGHTS" --precision bf16 --out "$OUT/metrics-floor-$1.json" \
        --make-stats "$OUT/$1.npz"
}

# reconstruct DATA NAME: images through the tokenizer
reconstruct() {
    python benchmarks/reconstructions.py --data "$1" --tokenizer "$OUT/decoder" --num-images "$N" --out "$OUT/$2"
}

# draw NAME MODEL FLAGS…
draw() {
    name=$1; model=$2; shift 2
    if [ -d "$OUT/$name" ]; then set -- "$@" --resume; fi
    rcg-sample --model "$OUT/$model" --out "$OUT/$name" --num-images "$N" --seed 0 --batch-size 256 --precision auto "$@"
    score "$name" "$OUT/$name" test
    score "$name" "$OUT/$name" reconstructed
}

train rcg-train-encoder   encoder   encoder-cifar10   --data "$TRAIN"
train rcg-train-tokenizer tokenizer tokenizer-cifar10 --data "$TRAIN"
train rcg-train-tokenizer decoder tokenizer-cifar10-decoder --data "$TRAIN" --decoder-of "$OUT/tokenizer" \
    --perceptual-encoder "$OUT/encoder"
rcg-cache --data "$TRAIN" --out "$OUT/cache" --image-size 32 --encoder "$OUT/encoder" --tokenizer "$OUT/tokenizer" \
    --views 2 --batch-size 256
train rcg-train-rdm rdm rdm-cifar10 --data "$OUT/cache"
for condition in representation none class; do
    train rcg-train-generator "generator-$condition" generator-cifar10 --data "$OUT/cache" \
        --tokenizer "$OUT/tokenizer" --condition "$condition"
done
rcg-assemble --generator "$OUT/generator-representation" --tokenizer "$OUT/decoder" --encoder "$OUT/encoder" \
    --rdm "$OUT/rdm" --out "$OUT/model-representation" --overwrite
for condition in none class; do
    rcg-assemble --generator "$OUT/generator-$condition" --tokenizer "$OUT/decoder" --out "$OUT/model-$condition" --overwrite
done

# The floors, in both spaces, and what the tokenizer alone costs.
[ -f "$OUT/test.npz" ] || floor test "$TRAIN" "$TEST"
if [ ! -f "$OUT/reconstructed.npz" ]; then
    reconstruct "$TEST" reconstructed-test
    reconstruct "$TRAIN" reconstructed-train
    floor reconstructed "$OUT/reconstructed-train" "$OUT/reconstructed-test"
fi
score tokenizer "$OUT/reconstructed-test" test

draw none           model-none
draw class          model-class
draw representation model-representation
for scale in $SCALES; do
    draw "class-guided-$scale"          model-class          --guidance-scale "$scale"
    draw "representation-guided-$scale" model-representation --guidance-scale "$scale"
done
python benchmarks/cifar10_table.py "$OUT"
