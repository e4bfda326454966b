#!/bin/sh
# The main job in minutes: photographs in, pictures and figures out. `make demo` runs this. Run it again after an interruption
# and it goes on where it was.
#
#   DATA=my/photos TEST=my/other/photos OUT=runs/mine sh demo/run.sh      the same on your own images
#
# Encoder and image generator begin with the weights in the box (rcg/cifar10), which has seen no photograph of this set. What
# is learned here: which representations these photographs have (the RDM), and how to paint them; and, beside it and for as
# many steps, the same generator without representations.
set -eu
OUT=${OUT:-runs/demo}
DATA=${DATA:-clothing:split=train,size=32}
TEST=${TEST:-clothing:split=test,size=32}
BOX=${BOX:-rcg/cifar10}
N=${N:-500}
GUIDANCE=${GUIDANCE:-3}
RDM_GUIDANCE=${RDM_GUIDANCE:-1.75}
CLUSTERS=${CLUSTERS:-30}
SEED=${SEED:-0}
mkdir -p "$OUT"

# Two branches side by side, each on half of the cores, are done sooner than one after the other on all of them.
# both A B: run the function A in the background, its output in $OUT/A.log, and B here; then wait for A. Whoever stops the script
# stops both: what runs in the background does not hear Ctrl-C, so each of its commands is run by `run`, which passes a stop on.
# A function that `both` runs chains its commands by &&, because `set -e` sleeps in it.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc knows which of them this process may use
half=$(((cores + 1) / 2))
background=
run() {
    if [ -z "$background" ]; then "$@"; return; fi
    "$@" &
    job=$!
    trap 'kill "$job" 2>/dev/null; exit 143' TERM
    wait "$job"
}
both() {
    echo "== beside the next: $1, its output in $OUT/$1.log"
    (export OMP_NUM_THREADS="$half"; background=yes; "$1") >"$OUT/$1.log" 2>&1 &
    behind=$!
    trap 'kill "$behind" 2>/dev/null || :' EXIT
    trap 'exit 130' INT TERM
    failed=
    (export OMP_NUM_THREADS="$half"; "$2") || failed=$2
    wait "$behind" || { tail -n 3 "$OUT/$1.log"; failed="${failed:+$failed and }$1"; }
    trap - EXIT INT TERM
    if [ -n "$failed" ]; then echo "No further: $failed failed." >&2; exit 1; fi
    echo "== $1 is done, too"
}

# train STAGE NAME FLAGS…: rcg-train-STAGE into $OUT/NAME, from its newest checkpoint if an earlier try left one
train() {
    stage=$1; name=$2; shift 2
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    echo "== rcg-train-$stage → $OUT/$name"
    run "rcg-train-$stage" --config "demo-$stage" --out "$OUT/$name" --data "$OUT/cache" --seed "$SEED" "$@"
}

# sample NAME MODEL FLAGS…: $N images into $OUT/NAME
sample() {
    name=$1; model=$2; shift 2
    echo "== rcg-sample → $OUT/$name"
    if [ -f "$OUT/$name/sampling.json" ]; then set -- "$@" --resume; fi
    run rcg-sample --model "$model" --num-images "$N" --seed "$SEED" --batch-size 50 --out "$OUT/$name" "$@"
}

# score NAME: the images in $OUT/images-NAME
score() {
    echo "== rcg-eval → $OUT/metrics-$1.json"
    run rcg-eval --generated "$OUT/images-$1" --reference "$TEST" --image-size 32 --metrics fid,kid,prc --extractor "$EXTRACTOR" \
        --out "$OUT/metrics-$1.json"
}

# 1. What the images mean: the frozen encoder, once over all of them; and which of them are alike, without any label (clusters,
# towards which the RDM can be guided).
echo "== rcg-cache → $OUT/cache"
rcg-cache --data "$DATA" --out "$OUT/cache" --image-size 32 --images --encoder "$BOX" --views 2 --batch-size 128 \
    --clusters "$CLUSTERS"

# 2. Noise → representation.
train rdm rdm --condition cluster

# 3. Representation → pixels; beside it the same generator without a condition. Put the stages together and draw. The generator
# can be guided away from what it was before it saw these photographs (autoguidance, arXiv 2406.02507), the RDM towards its
# clusters.
baseline() {
    train generator unconditional --start-from "$BOX" --condition none &&
        run rcg-assemble --generator "$OUT/unconditional" --out "$OUT/baseline" --overwrite &&
        sample images-baseline "$OUT/baseline"
}
rcg() {
    train generator generator --start-from "$BOX" --condition representation &&
        run rcg-assemble --encoder "$BOX" --rdm "$OUT/rdm" --generator "$OUT/generator" --guiding-model "$BOX" \
            --out "$OUT/model" --overwrite &&
        sample images-rcg "$OUT/model"
}
both baseline rcg
sample images-rcg-guided "$OUT/model" --guidance-scale "$GUIDANCE" --rdm-guidance-scale "$RDM_GUIDANCE"

# 4. Score them. Inception's weights are downloaded where there is a network; without them the encoder judges.
if [ -z "${EXTRACTOR:-}" ]; then
    EXTRACTOR=inception
    if ! python -c 'from rcg.eval.extractors import open_extractor; open_extractor("inception")' 2>"$OUT/inception.log"; then
        tail -n 1 "$OUT/inception.log"
        EXTRACTOR=encoder:$BOX
        echo "== Inception is not at hand: scoring by the features of $EXTRACTOR (it favours RCG; compare with care)"
    fi
fi
score_unguided() { score baseline && score rcg; }
score_guided() { score rcg-guided; }
both score_unguided score_guided

# 5. One picture and one table.
python demo/report.py "$OUT" "$TEST"
