#!/usr/bin/env bash
# The container's entry point, and the two commands that need nothing but Python 3.11 or newer.
set -euo pipefail

# What asks a container's first process to stop, the kernel drops where nobody listens yet. So it waits till Python does.
case $$-${ROBOSAT_PINK_BLOCKED:-}-${1:-} in
1--train | 1--check | 1--predict | 1--evaluate | 1--init)
    if env --block-signal=TERM true 2>/dev/null; then # of coreutils 8.31 and later
        exec env --block-signal=TERM --block-signal=INT ROBOSAT_PINK_BLOCKED=1 bash "${BASH_SOURCE[0]}" "$@"
    fi
    ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv

usage() {
    cat <<'TEXT'
usage: start.sh VERB [ARGUMENT ...]

  init      write an experiment file for the tiles in a folder or s3://BUCKET/PREFIX, with a comment for each choice,
            and check it; arguments: FOLDER, --to FILE (mine.yml), and --images and --masks FOLDER if these cannot be told
  train     train what the experiment file in /opt/ml/input/data/config says (SAGEMAKER_BASE_DIR moves /opt/ml);
            arguments: KEY=VALUE overrides such as model.epochs=1, or --config FILE
  check     say what `train` would find and take, and train nothing; arguments: FILE, an experiment file, and overrides
  predict   make the map that the experiment file's section predict says: class tiles, one file a scene, a page;
            arguments as for train; --check says what there is to predict
  evaluate  say how good the model of the section predict is on tiles that have masks: numbers, scenes, a page;
            arguments as for predict; or --summary FOLDER ..., mean and spread of several evaluations
  demo      write sample tiles into ./demo, train on them for some minutes on a CPU, make a map of them, and say where
            to look; an earlier one becomes ./demo-1 and so on
  test      run the tests but the slow ones, on all cores; --all runs every test; other arguments go to pytest
  help      this text; `start.sh VERB --help`, except for demo and test, is about one verb

Where robosat_pink is not installed (a clone), the verbs make ./.venv first: some minutes and 8 GB, once.
TEXT
}

fail() { # fail EXIT_CODE MESSAGE
    echo "start.sh: $2" >&2
    exit "$1"
}

# An image has the package installed; -I keeps the current folder from passing for an installation.
is_installed() {
    [ "$(command -v python3)" != "$venv/bin/python3" ] && command -v python3 >/dev/null && python3 -I -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("robosat_pink"))'
}

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail 69 "needs Python 3.11 or newer, found $(python3 --version 2>/dev/null || echo none); install one and try again"
}

# The pip list of the conda environment file, a requirement a line.
pins() {
    sed -n '/^ *- pip:/,$ s/^ *- \([^ ]*==[^ ]*\).*/\1/p' "$here/pytorch_p36.yml"
}

# make_environment [EXTRA]: .venv holds the pins, the package and the extra. The stamp is written last, so that an
# interrupted set-up is done again, and tells when pins or package metadata have changed.
make_environment() {
    local extra=${1:-} stamp python
    stamp=$(cat "$here/pytorch_p36.yml" "$here/pyproject.toml" | cksum)
    if grep -qxF "$stamp" "$venv/stamp${extra:+-$extra}" 2>/dev/null; then
        return
    fi
    python=$(find_python)
    echo "start.sh: setting up $venv; the first time this takes some minutes and 8 GB" >&2
    rm -f "$venv"/stamp*
    if ! "$python" -m venv "$venv" >&2; then
        fail 69 "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
    fi
    local requirements
    mapfile -t requirements < <(pins)
    "$venv/bin/pip" install --quiet "${requirements[@]}" >&2
    "$venv/bin/pip" install --quiet "${requirements[@]}" --editable "$here${extra:+[$extra]}" >&2
    echo "$stamp" >"$venv/stamp"
    if [ -n "$extra" ]; then
        echo "$stamp" >"$venv/stamp-$extra"
    fi
}

# choose_python [EXTRA]: sets $python to the interpreter that has robosat_pink.
choose_python() {
    if is_installed; then
        python=$(command -v python3)
    elif [ -n "$asks_for_help" ]; then # which needs no packages
        python=$(find_python)
        export PYTHONPATH=$here
    else
        make_environment "$@"
        python=$venv/bin/python
    fi
}

# put_aside FOLDER: removes it if it is empty; otherwise it becomes FOLDER-1 and so on, for it may hold a trained network.
put_aside() {
    local number=1
    if rmdir "$1" 2>/dev/null; then
        return
    fi
    while [ -e "$1-$number" ]; do
        number=$((number + 1))
    done
    mv "$1" "$1-$number"
    echo "start.sh: the earlier $1 is now $1-$number" >&2
}

# prepare: the environment of a training, a prediction or an evaluation.
prepare() {
    export PYTHONUNBUFFERED=1
    # Without an NVIDIA driver a CPU computes. glibc then keeps small freed blocks at hand for each thread; they come to
    # lie between the network's large blocks, which cannot be joined when they are freed: AlbuNet took up to a third
    # more memory in float32. container/hardware.py does the rest. The user's GLIBC_TUNABLES, even empty, takes precedence.
    if ! [ -e /proc/driver/nvidia/version ]; then
        export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.tcache_count=0}
    fi
}

# wait_for COMMAND [ARGUMENT ...]: runs it, and hands on a signal that asks to stop. Exits where it failed or was stopped.
wait_for() {
    local child code=0 stopped=
    trap 'stopped=yes; kill -TERM "$child" 2>/dev/null || true' INT TERM
    "$@" &
    child=$!
    wait "$child" || code=$?
    if [ -n "$stopped" ]; then # which ended the first wait, not the command
        code=0
        wait "$child" || code=$?
        exit "$code"
    fi
    trap - INT TERM
    if [ "$code" != 0 ]; then
        exit "$code"
    fi
}

verb=${1:-}
shift || true
asks_for_help=
case " $* " in
*" -h "* | *" --help "*) asks_for_help=yes ;;
esac
case $verb in
train | predict | evaluate | init)
    choose_python
    prepare
    exec "$python" -m "robosat_pink.$verb" "$@" # so that a container's first process takes its signals itself
    ;;
check)
    choose_python
    export PYTHONUNBUFFERED=1
    exec "$python" -m robosat_pink.train --check "$@"
    ;;
demo)
    if [ -n "$asks_for_help" ]; then
        usage
        exit
    fi
    choose_python
    folder=$here/demo
    if ! mkdir -p "$folder" 2>/dev/null; then
        fail 73 "cannot write $folder"
    fi
    put_aside "$folder"
    "$python" -m robosat_pink.sample "$folder" --experiment "$here/experiments/demo.yml"
    echo "The experiment is $here/experiments/demo.yml, its tiles are in $folder/input/data;"
    echo "look into $folder/model for the network and its numbers: best.pth, metrics.json, history.csv;"
    echo "open $folder/output/data/report.html for what they mean, and map.html beside it for the map."
    echo "If it is stopped, this resumes it: SAGEMAKER_BASE_DIR=$folder bash start.sh train"
    export SAGEMAKER_BASE_DIR=$folder
    prepare
    wait_for "$python" -m robosat_pink.train "$@"
    exec "$python" -m robosat_pink.predict "$@" "predict.model=$folder/model"
    ;;
test)
    asks_for_help= # pytest does the helping
    if ! [ -d "$here/tests" ]; then
        fail 69 "an image has no tests; run them in a clone: bash start.sh test"
    fi
    choose_python test
    cd "$here"
    case " $* " in
    *" -n"* | *" --numprocesses"* | *" --pdb "*) ;;
    *) set -- -n auto --dist worksteal "$@" ;;
    esac
    exec "$python" -m pytest "$@"
    ;;
help | -h | --help)
    usage
    ;;
serve)
    fail 64 "this image does not serve; there are: init, train, check, predict, evaluate, demo, test, help"
    ;;
*)
    fail 64 "there is no verb '$verb'; there are: init, train, check, predict, evaluate, demo, test, help"
    ;;
esac
