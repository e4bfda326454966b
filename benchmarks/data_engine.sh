#!/bin/sh
# What generated images are worth to a classifier: real images alone, class-conditional samples, Diffusion Inversion, the RCG
# data engine, and real + each, by one recipe, against the number of generated images, where 1 % and 10 % (and 100 %) of the
# real images have labels.
#
#   sh benchmarks/data_engine.sh TRAIN TEST OUT
#
# TRAIN and TEST are folders of images of 32 px (CIFAR-10) with a folder for each class. Everything is made from the labelled
# images of a base alone, but for the pipeline in the box, which saw all training images, without labels: each method begins
# from it, so that they are equal in this.
#
#   class      class-conditional samples: the box's generator trained on with --condition class, on the base's images
#   rdm        class-conditional samples: an RDM with classes, trained on the base's representations, before the box's generator
#   inversion  Diffusion Inversion of the box's generator (from INIT), varied by noise and interpolation within the class
#   engine     RCG's data engine: the encoder's representations of the base's images, varied in the same way, filtered
#
# Run again to go on after a stop. On two cores the budget below is about five hours, half of them for 100 %. RUN=echo shows
# the commands.
set -eu
[ $# -ge 3 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
TRAIN=$1; TEST=$2; OUT=$3
BASES=${BASES:-1 10 100}                # per cent of the real images
METHODS=${METHODS:-class inversion engine}
GENERATED_BASES=${GENERATED_BASES:-1 10 100} # those that methods make images for; the others are real alone
TIMES_1=${TIMES_1:-1 2 5};    SEEDS_1=${SEEDS_1:-3};     STEPS_1=${STEPS_1:-400}      # of the classifiers, by base
TIMES_10=${TIMES_10:-1 2 5};  SEEDS_10=${SEEDS_10:-2};   STEPS_10=${STEPS_10:-700}
TIMES_100=${TIMES_100:-1};    SEEDS_100=${SEEDS_100:-2}; STEPS_100=${STEPS_100:-3000}
CLASSIFIER=${CLASSIFIER:-resnet18}
KWARGS=${KWARGS:-'{"channels": [32, 64, 128, 256]}'}
STEM=${STEM:-half}
BATCH=${BATCH:-128}
INIT=${INIT:-zero}                      # of inversion: zero, as in the paper, or encoder
INVERSION_STEPS=${INVERSION_STEPS:-100}
INVERSION_LR=${INVERSION_LR:-0.05}
INVERTED_100=${INVERTED_100:-20}        # per cent of a base's images that are inverted (INVERTED_1, …: all, unless said)
CLASS_STEPS=${CLASS_STEPS:-600}         # of the class-conditional generator
RDM_STEPS=${RDM_STEPS:-600}
ATTEMPTS=${ATTEMPTS:-50}                # of the engine for each image, until one stays in its class
RESERVE=${RESERVE:-1.1}                 # times as many images as needed from it, for those that never do
NOISE=${NOISE:-0.1 0.2 0.3}             # on representations (of length 16)
NOISE_INVERSION=${NOISE_INVERSION:-0 0.05 0.1} # on inverted conditions (from zero, of length 6)
INTERPOLATION=${INTERPOLATION:-0 0.2 0.4}
GUIDANCE=${GUIDANCE:-1 1.5 2}
SAMPLING_STEPS=${SAMPLING_STEPS:-12}
MODEL=${MODEL:-rcg/cifar10}
PROCESSES=${PROCESSES:-2}
PYTHON=${PYTHON:-python}
RUN=${RUN:-}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$OUT"

rcg() { command=$1; shift; $RUN $PYTHON -m "rcg.scripts.$command" "$@"; }

# many COMMAND FLAGS… (by PROCESSES processes, each its share)
many() {
    command=$1; shift
    if [ "$PROCESSES" -gt 1 ]; then
        $RUN $PYTHON -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" -m "rcg.scripts.$command" "$@"
    else
        rcg "$command" "$@"
    fi
}

# go on where something is
resume() { [ -d "$1" ] && echo --resume || true; }

# finished FILE COMMAND… (once)
finished() {
    mark=$1; shift
    if [ -e "$mark" ]; then return 0; fi
    "$@"
    if [ -z "$RUN" ]; then : > "$mark"; fi
}

count() { find "$1" -type f -name '*.png' | wc -l | tr -d ' '; }

real_of() { if [ "$1" = 100 ]; then echo "$TRAIN"; else echo "$OUT/real-$1"; fi; }

most() { for t in $1; do echo "$t"; done | sort -g | tail -1; }

# part FOLDER PER_CENT OF_FOLDER: a share of the images, the same in each class
part() { $RUN $PYTHON benchmarks/subset.py --data "$3" --out "$1" --share "$(echo "$2" | awk '{print $1 / 100}')"; }

# images BASE METHOD NUMBER: fill OUT/BASE/METHOD
images() {
    real=$(real_of "$1"); dir=$OUT/$1; method=$2; number=$3
    eval "inverted=\${INVERTED_$1:-100}"
    set -- --model "$MODEL" --out "$dir/$method" --num-images "$number" --num-inference-steps "$SAMPLING_STEPS" \
        --guidance-scales $GUIDANCE --batch-size 250 --seed 0 $(resume "$dir/$method")
    case $method in
    inversion)
        chosen=$real
        if [ "$inverted" != 100 ]; then chosen=$dir/to-invert; part "$chosen" "$inverted" "$real"; fi
        many invert --data "$chosen" --model "$MODEL" --out "$dir/inverted" --init "$INIT" --steps "$INVERSION_STEPS" \
            --turn-steps 50 --batch-size 50 --lr "$INVERSION_LR"
        many synthesize "$@" --from-inversion "$dir/inverted" --noise $NOISE_INVERSION --interpolation $INTERPOLATION ;;
    engine)
        many synthesize "$@" --from-images "$real" --noise $NOISE --interpolation $INTERPOLATION --filter-data "$real" \
            --attempts "$ATTEMPTS" ;;
    rdm)
        rcg cache --data "$real" --out "$dir/cache" --image-size 32 --images --encoder "$MODEL" --views 2 --batch-size 250
        many train_rdm --config rdm-cifar10-flow --data "$dir/cache" --out "$dir/rdm-model" --condition class \
            --held-out-share 0 --steps "$RDM_STEPS" $(resume "$dir/rdm-model/training")
        rcg assemble --generator "$MODEL" --encoder "$MODEL" --rdm "$dir/rdm-model" --out "$dir/rdm-pipeline" --overwrite
        ls "$real" > "$dir/classes.txt"
        shift 2
        many synthesize --model "$dir/rdm-pipeline" "$@" --from-rdm --classes "$dir/classes.txt" ;;
    class)
        rcg cache --data "$real" --out "$dir/cache" --image-size 32 --images --encoder "$MODEL" --views 2 --batch-size 250
        many train_generator --config generator-pixel-cifar10 --data "$dir/cache" --condition class --start-from "$MODEL" \
            --steps "$CLASS_STEPS" --held-out 0 --out "$dir/class-model" $(resume "$dir/class-model/training")
        rcg assemble --generator "$dir/class-model" --out "$dir/class-pipeline" --overwrite
        labels=$(seq 0 $(($(ls "$real" | wc -l) - 1)))
        many sample --model "$dir/class-pipeline" --out "$dir/class" --num-images "$number" --seed 0 --batch-size 250 \
            --class-labels $labels --num-inference-steps "$SAMPLING_STEPS" --guidance-scale "${CLASS_GUIDANCE:-1.5}" \
            $(resume "$dir/class") ;;
    *) echo "METHODS knows class, rdm, inversion and engine, not $method" >&2; exit 2 ;;
    esac
}

# judge BASE NAME FLAGS…: classifiers, written to OUT/BASE-NAME.json
judge() {
    base=$1; name=$2; shift 2
    eval "seeds=\$SEEDS_$base steps=\$STEPS_$base"
    rcg eval --classifier "$CLASSIFIER" --classifier-kwargs "$KWARGS" --classifier-stem "$STEM" --train-data "$(real_of "$base")" \
        --held-out "$TEST" --classifier-seeds "$seeds" --classifier-steps "$steps" --classifier-batch-size "$BATCH" \
        --out "$OUT/$base-$name.json" "$@"
}

jobs=""
# at_once COMMAND…: in the background, PROCESSES at a time
at_once() {
    if [ "$PROCESSES" -le 1 ]; then "$@"; return; fi
    "$@" & jobs="$jobs $!"
    set -- $jobs
    if [ $# -ge "$PROCESSES" ]; then wait "$1"; shift; jobs="$*"; fi
}

for base in $BASES; do
    mkdir -p "$OUT/$base"
    [ "$base" = 100 ] || part "$OUT/real-$base" "$base" "$TRAIN"
done
for base in $GENERATED_BASES; do
    eval "times=\$TIMES_$base"
    n=$(count "$(real_of "$base")")
    for method in $METHODS; do
        reserve=1
        if [ "$method" = engine ]; then reserve=$RESERVE; fi
        number=$(echo "$n $(most "$times") $reserve" | awk '{print int($1 * $2 * $3)}')
        finished "$OUT/$base/$method.done" images "$base" "$method" "$number"
    done
done
for base in $BASES; do
    at_once judge "$base" real --train-on real
done
for base in $GENERATED_BASES; do
    eval "times=\$TIMES_$base"
    for method in $METHODS; do
        at_once judge "$base" "$method" --generated "$OUT/$base/$method" --train-on generated mixed --times $times \
            --class-coverage --membership --extractor "encoder:$MODEL" --feature-sample 2000
    done
done
for job in $jobs; do wait "$job"; done
$RUN $PYTHON benchmarks/data_engine_table.py "$OUT"
