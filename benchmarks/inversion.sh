#!/bin/sh
# Inversion of images by the pipeline in the box: its loss, from the encoder's representation and from zero; reconstructions
# beside those from any other image's condition; variations. A grid to look at.
#
#   sh benchmarks/inversion.sh TRAIN OUT [INCEPTION_WEIGHTS]
#
# TRAIN is a folder of images of 32 px with a folder for each of ten classes. With the weights, likeness is measured in
# Inception's features, which the model does not know, otherwise in those of its own encoder. Run again to go on after a stop.
set -eu
[ $# -ge 2 ] || { sed -n 's/^#   sh /usage: sh /p' "$0" >&2; exit 2; }
TRAIN=$1; OUT=$2; INCEPTION=${3:-}
EACH=${EACH:-8}                        # images of each class
STEPS_ENCODER=${STEPS_ENCODER:-200}    # of Adam, from the encoder's representation
STEPS_ZERO=${STEPS_ZERO:-400}          # from zero
MODEL=${MODEL:-rcg/cifar10}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"

$PYTHON benchmarks/subset.py --data "$TRAIN" --out "$OUT/images" --each "$EACH"
for start in encoder zero; do
    steps=$STEPS_ZERO
    [ "$start" = encoder ] && steps=$STEPS_ENCODER
    $PYTHON -m rcg.scripts.invert --data "$OUT/images" --model "$MODEL" --out "$OUT/$start" --init "$start" --steps "$steps" \
        --turn-steps 25 --batch-size 40
done
set --
[ -n "$INCEPTION" ] && set -- --extractor inception-768 --extractor-weights "$INCEPTION"
$PYTHON benchmarks/inversion_look.py --tables "$OUT/encoder" "$OUT/zero" --out "$OUT" --model "$MODEL" "$@"
