#!/bin/sh
# StableRep's experiment at the size of CIFAR-10: are encoders that learn from synthetic images as good as those that learn from
# real ones, do several images of one prompt help, and does such an encoder serve RCG?
#
#   sh benchmarks/stablerep.sh TRAIN TEST INCEPTION_WEIGHTS OUT
#
# TRAIN and TEST are folders of PNG files with one folder a class; INCEPTION_WEIGHTS is an Inception-v3 file (whole, or up to
# Mixed_6e). Run again to go on after a stop, with the same numbers; more SCALES, POSITIVES or SEEDS may be added. About 2½ hours
# on two free CPU cores with bf16: an estimate, from the speed of one core (1.1 steps a second of a MoCo-v3 encoder, 1.2 of a
# generator): encoders and generators of RCG 50 minutes, synthetic images 25, the encoders that are compared 35, probes and scores 30.
#
#   half        half of the training images, drawn by a seed; nothing below sees the other half but the linear probes
#   generator   RCG on that half: a MoCo-v3 encoder, a class-conditional RDM, a pixel transformer under representations
#   synthetic   rcg-synthesize: KEYS representations, of all classes in turn, PER_KEY images of each, at each guidance scale;
#               KEYS x PER_KEY is the size of the half
#   encoders    SimCLR on the half, SimCLR on synthetic images (which is m = 1), StableRep with m images of one representation:
#               one network, VIEWS views in a step and STEPS steps for each, SEEDS times; the generator is the same for all seeds
#   probes      rcg-eval --probe: linear probe (the rate is chosen on a tenth of the training images) and k-NN of all of CIFAR-10
#   RCG         a StableRep encoder, as many steps with as many views as the MoCo-v3 encoder had; then RDM and generator on the half
#               as above: N samples of both pipelines against N test images, FID-768
set -eu
[ $# -ge 4 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }

# ---------------------------------------------------------------- the budget
PER_CLASS=${PER_CLASS:-2500}              # images of each class in the half
ENCODER_STEPS=${ENCODER_STEPS:-1500}      # of the two encoders of RCG, 512 views each
GENERATOR_STEPS=${GENERATOR_STEPS:-2000}  # of the two generators, 128 images each
RDM_STEPS=${RDM_STEPS:-2000}              # of the two RDMs
KEYS=${KEYS:-2500}                        # representations
PER_KEY=${PER_KEY:-10}                    # images of each
DRAW_STEPS=${DRAW_STEPS:-12}              # of the sampler for synthetic images
SCALES=${SCALES:-1.5 3}                   # guidance
POSITIVES=${POSITIVES:-2 4 6}             # m
VIEWS=${VIEWS:-240}                       # in a step of the encoders that are compared; m divides it
STEPS=${STEPS:-450}                       # of these
SEEDS=${SEEDS:-0 1 2}
N=${N:-5000}                              # samples, and test images, of FID-768
FID_SCALES=${FID_SCALES:-1.5}
RCG_SCALE=${RCG_SCALE:-1.5}               # guidance of the images that RCG's StableRep encoder learns from: one of SCALES
RCG_POSITIVES=${RCG_POSITIVES:-4}         # its m; divides 512
PRECISION=${PRECISION:-bf16}              # of probes and scores; trainings and sampling find out for themselves
# ---------------------------------------------------------------- not part of the result
PROCESSES=${PROCESSES:-2}                 # of big trainings and of sampling (but see the encoders' BatchNorm: it is each one's own)
JOBS=${JOBS:-2}                           # small trainings and probes at the same time, one thread each
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

HERE=$(cd "$(dirname "$0")" && pwd)

# run COMMAND FLAGS… by PROCESSES processes
run() {
    command=$1; shift
    torchrun --nproc-per-node "$PROCESSES" --master-port "${PORT:-29517}" -m "rcg.scripts.$command" "$@"
}

# train COMMAND NAME FLAGS…
train() {
    command=$1; name=$2; shift 2
    [ -f "$OUT/$name/config.json" ] && return
    if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
    run "$command" --out "$OUT/$name" "$@"
}

# one NAME METHOD M DATA SEED: a small training, and its probe
one() {
    name=$1; method=$2; m=$3; data=$4; seed=$5
    [ -f "$OUT/probes/$name.json" ] && return
    if [ ! -f "$OUT/$name/config.json" ]; then
        set -- --method "$method" --data "$data" --seed "$seed" --steps "$STEPS" --eval-every "$STEPS" --out "$OUT/$name"
        if [ "$method" = stablerep ]; then
            set -- "$@" --batch-size $((VIEWS / m)) --images-per-caption "$m"
        else
            set -- "$@" --batch-size $((VIEWS / 2)) # two crops of each image
        fi
        if [ -d "$OUT/$name/training" ]; then set -- "$@" --resume; fi
        rcg-train-encoder --config "$HERE/stablerep_encoder.yaml" "$@"
    fi
    probe "$name" "$seed"
}

# probe NAME SEED; features are large and quickly made, so they do not stay
probe() {
    [ -f "$OUT/probes/$1.json" ] && return
    rcg-eval --probe "$TRAIN" --probe-test "$TEST" --probe-with linear knn --extractor "encoder:$OUT/$1" --seed "$2" \
        --precision "$PRECISION" --probe-cache "$OUT/features/$1" --out "$OUT/probes/$1.json"
    rm -rf "$OUT/features/$1"
}

# rcg NAME: RDM and generator on the half, with the encoder $OUT/encoder-NAME, to the pipeline $OUT/model-NAME
rcg() {
    rcg-cache --data "$OUT/half.zip" --out "$OUT/cache-$1" --image-size 32 --images --encoder "$OUT/encoder-$1" --views 2 \
        --batch-size 250
    train train_generator "generator-$1" --config generator-pixel-cifar10 --data "$OUT/cache-$1" --condition representation \
        --steps "$GENERATOR_STEPS" --eval-every "$GENERATOR_STEPS"
    train train_rdm "rdm-$1" --config rdm-cifar10-flow --data "$OUT/cache-$1" --condition class --steps "$RDM_STEPS"
    [ -f "$OUT/model-$1/model_index.json" ] || rcg-assemble --generator "$OUT/generator-$1" --rdm "$OUT/rdm-$1" \
        --encoder "$OUT/encoder-$1" --out "$OUT/model-$1"
}

# score NAME: FID-768 of $OUT/model-NAME
score() {
    name=$1 stats=$OUT/test-$N.npz
    [ -f "$stats" ] || run eval --make-stats "$stats" --reference "$TEST" --limit "$N" --extractor inception-768 \
        --extractor-weights "$WEIGHTS" --precision "$PRECISION"
    for scale in $FID_SCALES; do
        report=$OUT/metrics-$name-$scale.json samples=$OUT/samples-$name-$scale resume=
        [ -f "$report" ] && continue
        if [ -d "$samples" ]; then resume=--resume; fi
        run sample --model "$OUT/model-$name" --out "$samples" --num-images "$N" --seed 0 --batch-size 250 --precision auto \
            --guidance-scale "$scale" $resume
        run eval --generated "$samples" --reference "$stats" --metrics fid,prc --extractor inception-768 \
            --extractor-weights "$WEIGHTS" --precision "$PRECISION" --out "$report"
    done
}

if [ "${1:-}" = --one ]; then # of the jobs below
    shift; one "$@"; exit
fi

if [ $# -ne 4 ]; then echo "usage: sh $0 TRAIN TEST INCEPTION_WEIGHTS OUT" >&2; exit 2; fi
TRAIN=$1; TEST=$2; WEIGHTS=$3; OUT=$4
export TRAIN TEST OUT STEPS VIEWS PRECISION
mkdir -p "$OUT/probes"
budget="PER_CLASS=$PER_CLASS ENCODER_STEPS=$ENCODER_STEPS GENERATOR_STEPS=$GENERATOR_STEPS RDM_STEPS=$RDM_STEPS KEYS=$KEYS
PER_KEY=$PER_KEY DRAW_STEPS=$DRAW_STEPS VIEWS=$VIEWS STEPS=$STEPS N=$N RCG_SCALE=$RCG_SCALE RCG_POSITIVES=$RCG_POSITIVES
PRECISION=$PRECISION"
if [ -f "$OUT/budget.txt" ] && [ "$(cat "$OUT/budget.txt")" != "$budget" ]; then
    echo "$OUT was begun with other numbers (budget.txt); give these, or another folder." >&2; exit 2
fi
for m in $POSITIVES 2; do
    [ $((VIEWS % m)) = 0 ] || { echo "VIEWS=$VIEWS is no multiple of $m." >&2; exit 2; }
done
[ $((512 % RCG_POSITIVES)) = 0 ] || { echo "512 is no multiple of RCG_POSITIVES=$RCG_POSITIVES." >&2; exit 2; }
case " $SCALES " in
    *" $RCG_SCALE "*) ;;
    *) echo "RCG_SCALE=$RCG_SCALE is none of SCALES ($SCALES)." >&2; exit 2 ;;
esac
echo "$budget" > "$OUT/budget.txt"

# The half, and RCG on it.
python "$HERE/half_split.py" "$TRAIN" "$OUT/half.zip" --per-class "$PER_CLASS" --seed 0
train train_encoder encoder-moco --config encoder-cifar10-long --data "$OUT/half.zip" --steps "$ENCODER_STEPS" \
    --eval-every "$ENCODER_STEPS"
rcg moco

# Synthetic images, at each scale from the same representations.
for scale in $SCALES; do
    resume=
    if [ -d "$OUT/synthetic-$scale" ]; then resume=--resume; fi
    [ -f "$OUT/synthetic-$scale.done" ] || run synthesize --model "$OUT/model-moco" --out "$OUT/synthetic-$scale" \
        --representations "$KEYS" --images-per-caption "$PER_KEY" --guidance-scales "$scale" --num-inference-steps "$DRAW_STEPS" \
        --format png --captions-per-shard 50 --batch-size 250 --seed 0 $resume
    : > "$OUT/synthetic-$scale.done"
done

# The encoders that are compared; NAME is METHOD-DATA-mM-sSEED.
for seed in $SEEDS; do
    echo "simclr-real-m1-s$seed simclr 1 $OUT/half.zip $seed"
    for scale in $SCALES; do
        echo "simclr-$scale-m1-s$seed simclr 1 $OUT/synthetic-$scale $seed"
        for m in $POSITIVES; do
            echo "stablerep-$scale-m$m-s$seed stablerep $m $OUT/synthetic-$scale $seed"
        done
    done
done | xargs -P "$JOBS" -L 1 sh "$0" --one
probe encoder-moco 0

# RCG with a StableRep encoder.
train train_encoder encoder-stablerep --config "$HERE/stablerep_encoder.yaml" --method stablerep \
    --data "$OUT/synthetic-$RCG_SCALE" --images-per-caption "$RCG_POSITIVES" --batch-size $((512 / RCG_POSITIVES)) \
    --steps "$ENCODER_STEPS" --eval-every "$ENCODER_STEPS"
probe encoder-stablerep 0
rcg stablerep
score moco
score stablerep
python "$HERE/stablerep_table.py" "$OUT"
