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

# train STAGE NAME FLAGS…: rcg-train-STAGE into $OUT/NAME, from its newest checkpoint if an earlier try left one
exec=
train() {
    stage=$1; name=$2; shift 2
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    echo "== rcg-train-$stage → $OUT/$name"
    $exec "rcg-train-$stage" --config "demo-$stage" --out "$OUT/$name" --data "$OUT/cache" --seed "$SEED" "$@"
}

# Two trainings side by side, each on half of the cores, are done sooner than one after the other on all of them.
# behind NAME COMMAND…: start one in the background; ahead NAME COMMAND…: run the other, then wait for the first. Whoever stops
# the script stops both: what runs in the background does not hear Ctrl-C.
half=$((($(getconf _NPROCESSORS_ONLN) + 1) / 2))
behind() {
    behind=$OUT/$1; shift
    echo "== beside the next: $behind, progress in $behind.log"
    (export OMP_NUM_THREADS="$half"; exec=exec; "$@") >"$behind.log" 2>&1 &
    behind_pid=$!
    trap 'kill "$behind_pid" 2>/dev/null || :' EXIT
    trap 'exit 130' INT TERM
}
ahead() {
    ahead=$OUT/$1; shift; failed=
    (export OMP_NUM_THREADS="$half"; "$@") || failed=$ahead
    wait "$behind_pid" || { tail -n 3 "$behind.log"; failed="${failed:+$failed and }$behind"; }
    trap - EXIT INT TERM
    if [ -n "$failed" ]; then echo "No further: training failed for $failed." >&2; exit 1; fi
    echo "== $behind is trained too"
}

# sample NAME MODEL FLAGS…: $N images into $OUT/NAME
sample() {
    name=$1; model=$2; shift 2
    echo "== rcg-sample → $OUT/$name"
    if [ -f "$OUT/$name/sampling.json" ]; then set -- "$@" --resume; fi
    rcg-sample --model "$model" --num-images "$N" --seed "$SEED" --batch-size 50 --out "$OUT/$name" "$@"
}

# 1. What the images mean: the frozen encoder, once over all of them; and which of them are alike, without any label (clusters,
# towards which the RDM can be guided).
echo "== rcg-cache → $OUT/cache"
rcg-cache --data "$DATA" --out "$OUT/cache" --image-size 32 --images --encoder "$BOX" --views 2 --batch-size 128 \
    --clusters "$CLUSTERS"

# 2. Noise → representation, and representation → pixels; beside it the same generator without a condition.
train rdm rdm --condition cluster
behind unconditional train generator unconditional --start-from "$BOX" --condition none
ahead  generator     train generator generator     --start-from "$BOX" --condition representation

# 3. Put the stages together and draw. The generator is guided away from what it was before it saw these photographs
# (autoguidance, arXiv 2406.02507), the RDM towards its clusters.
rcg-assemble --encoder "$BOX" --rdm "$OUT/rdm" --generator "$OUT/generator" --guiding-model "$BOX" --out "$OUT/model" \
    --overwrite
rcg-assemble --generator "$OUT/unconditional" --out "$OUT/baseline" --overwrite
sample images-baseline   "$OUT/baseline"
sample images-rcg        "$OUT/model"
sample images-rcg-guided "$OUT/model" --guidance-scale "$GUIDANCE" --rdm-guidance-scale "$RDM_GUIDANCE"

# 4. Score them. Inception's weights are downloaded where there is a network; without them the encoder judges.
score() {
    rcg-eval --generated "$OUT/images-$1" --reference "$TEST" --image-size 32 --metrics fid,kid,prc --extractor "$EXTRACTOR" \
        --out "$OUT/metrics-$1.json"
}
if [ -z "${EXTRACTOR:-}" ]; then
    EXTRACTOR=inception
    if ! python -c 'from rcg.eval.extractors import open_extractor; open_extractor("inception")' 2>"$OUT/inception.log"; then
        tail -n 1 "$OUT/inception.log"
        EXTRACTOR=encoder:$BOX
        echo "== Inception is not at hand: scoring by the features of $EXTRACTOR (it favours RCG; compare with care)"
    fi
fi
score baseline
score rcg
score rcg-guided

# 5. One picture and one table.
python demo/report.py "$OUT" "$TEST"
