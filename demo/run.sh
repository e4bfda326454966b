#!/bin/sh
# The main job at a size that a laptop finishes over a coffee: images in, pictures and figures out.
# `make demo` runs this. Run it again after an interruption and it goes on where it was.
#
#   DATA=my/photos TEST=my/other/photos OUT=runs/mine sh demo/run.sh      the same on your own images
set -eu
OUT=${OUT:-runs/demo}
DATA=${DATA:-shapes:n=6000,size=32,seed=0}
TEST=${TEST:-shapes:n=1000,size=32,seed=1}
N=${N:-1000}
mkdir -p "$OUT"

# train STAGE NAME FLAGS…: rcg-train-STAGE into $OUT/NAME, from its newest checkpoint if an earlier try left one
train() {
    stage=$1; name=$2; shift 2
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    echo "== rcg-train-$stage → $OUT/$name"
    "rcg-train-$stage" --config "demo-$stage" --out "$OUT/$name" "$@"
}

# Two small trainings side by side, each on half of the cores, are done sooner than one after the other on all of them.
# behind NAME COMMAND…: start one in the background; ahead NAME COMMAND…: run the other, then wait for the first
half=$((($(getconf _NPROCESSORS_ONLN) + 1) / 2))
behind() {
    behind=$OUT/$1; shift
    echo "== beside the next: $behind, progress in $behind.log"
    (export OMP_NUM_THREADS="$half"; "$@") >"$behind.log" 2>&1 &
    behind_pid=$!
}
ahead() {
    ahead=$OUT/$1; shift; failed=
    (export OMP_NUM_THREADS="$half"; "$@") || failed=$ahead
    wait "$behind_pid" || { tail -n 3 "$behind.log"; failed="${failed:+$failed and }$behind"; }
    if [ -n "$failed" ]; then echo "No further: training failed for $failed." >&2; exit 1; fi
    echo "== $behind is trained too"
}

# sample NAME MODEL FLAGS…: $N images into $OUT/NAME
sample() {
    name=$1; model=$2; shift 2
    echo "== rcg-sample → $OUT/$name"
    if [ -d "$OUT/$name" ]; then set -- "$@" --resume; fi
    rcg-sample --model "$model" --num-images "$N" --seed 0 --batch-size 64 --precision auto --out "$OUT/$name" "$@"
}

# 1. The frozen parts: what an image means, and how it is spelt in tokens.
behind encoder   train encoder   encoder   --data "$DATA"
ahead  tokenizer train tokenizer tokenizer --data "$DATA"

# 2. Run them once over the images; from here on training reads the cache.
echo "== rcg-cache → $OUT/cache"
rcg-cache --data "$DATA" --out "$OUT/cache" --image-size 32 --encoder "$OUT/encoder" --tokenizer "$OUT/tokenizer"

# 3. Noise → representation, and representation → tokens; beside it the same generator without a condition.
train rdm rdm --data "$OUT/cache"
behind unconditional train generator unconditional --data "$OUT/cache" --tokenizer "$OUT/tokenizer" --condition none
ahead  generator     train generator generator     --data "$OUT/cache" --tokenizer "$OUT/tokenizer" --condition representation

# 4. Put the stages together and draw.
rcg-assemble --encoder "$OUT/encoder" --rdm "$OUT/rdm" --generator "$OUT/generator" --tokenizer "$OUT/tokenizer" \
    --guidance-scale 1.0 --out "$OUT/model" --overwrite
rcg-assemble --generator "$OUT/unconditional" --tokenizer "$OUT/tokenizer" --out "$OUT/baseline" --overwrite
sample images-baseline   "$OUT/baseline"
sample images-rcg        "$OUT/model"
sample images-rcg-guided "$OUT/model" --guidance-scale 2.0

# 5. Score them. Inception's weights are downloaded where there is a network; without them the trained encoder judges.
score() {
    rcg-eval --generated "$OUT/images-$1" --reference "$TEST" --image-size 32 --metrics fid,kid,prc --extractor "$EXTRACTOR" \
        --out "$OUT/metrics-$1.json"
}
EXTRACTOR=${EXTRACTOR:-inception}
if ! score baseline; then
    EXTRACTOR=encoder:$OUT/encoder
    echo "== Inception is not at hand: scoring by the features of $EXTRACTOR (it favours RCG; compare with care)"
    score baseline
fi
score rcg
score rcg-guided

# 6. One picture and one table.
python demo/report.py "$OUT" "$TEST"
