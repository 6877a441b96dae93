#!/usr/bin/env bash
# Check this package on the GPU of this machine.
#
#   bench/gpu_check.sh            every stage, in order
#   bench/gpu_check.sh build      compile for the GPU found, beside your environment
#   bench/gpu_check.sh test       every CUDA test, and the ops' tests on the CPU there
#   bench/gpu_check.sh sanitize   memcheck, racecheck, initcheck, synccheck
#   bench/gpu_check.sh bench      time the ops beside the goals and beside peers
#   bench/gpu_check.sh train      train small models (tokenizer for 128 pixels, generation
#                                 for longer than a CPU would) and judge them
#
# A stage ends within STAGE_SECONDS (500); one that did not get through says so, exits
# 75, and goes on there when called again. Nothing is installed into your environment
# and nothing is fetched: PYTHON (python3) must have torch with CUDA, pytest,
# pytest-benchmark, pytest-timeout, scikit-build-core, pybind11, cmake and ninja; `train`
# needs what `pip install .[train]` brings too, and the font Noto Color Emoji.
# RESULTS (bench/results) takes logs, timings and tables, in one folder per GPU.
# TOKENFLOW_GOLDEN names the folder of recorded tensors, where you have one.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
STAGE_SECONDS=${STAGE_SECONDS:-500}
RESULTS=${RESULTS:-bench/results}
WORK=build/gpu_check
SITE=$PWD/$WORK/site

# Python sees the build there, never the sources' folder of the same name.
export PYTHONSAFEPATH=1 PYTHONPATH=$SITE
export TOKENFLOW_EXT_REQUIRE_KERNELS=1 HF_HUB_OFFLINE=1
PYTEST=("$PYTHON" -m pytest -q -p no:cacheprovider)

say() { echo "gpu_check: $*"; }
stop() {
  say "$*" >&2
  exit 3
}
left() { echo $((STAGE_SECONDS - SECONDS)); }

look_around() {
  command -v nvidia-smi >/dev/null || stop "no nvidia-smi on PATH, so no NVIDIA GPU here"
  GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
  FOLDER=$RESULTS/$(echo "$GPU" | tr 'A-Z /' 'a-z--' | tr -cd 'a-z0-9-')
  mkdir -p "$FOLDER" "$WORK"
  "$PYTHON" - <<'PY' || stop "$PYTHON lacks what this needs (see the top of this script)"
import importlib.util as util
import shutil
import sys

names = ("torch", "pytest", "pytest_benchmark", "pytest_timeout", "scikit_build_core",
         "pybind11")
lacking = [name for name in names if util.find_spec(name) is None]
lacking += [name for name in ("cmake", "ninja")
            if util.find_spec(name) is None and shutil.which(name) is None]
if lacking:
    sys.exit(f"missing: {', '.join(lacking)}")
import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")
PY
}

stage_build() {
  say "building for $GPU"
  mkdir -p "$SITE"
  PYTHONPATH='' TOKENFLOW_CUDA=on timeout "$(left)" "$PYTHON" -m pip install --quiet \
    --disable-pip-version-check --no-index --no-deps --no-build-isolation --upgrade \
    --target "$SITE" . 2>&1 | tee "$FOLDER/build.log"
  rm -rf "$WORK/passed"
  say "built in $SECONDS s"
  need_build | tee -a "$FOLDER/build.log"
}

need_build() {
  "$PYTHON" - "$SITE" <<'PY' || stop "there is no build for CUDA to check; run $0 build"
import sys

import tokenflow_ext

facts = tokenflow_ext.info()
if not tokenflow_ext.__file__.startswith(sys.argv[1]):
    sys.exit(f"{sys.executable} has a tokenflow_ext of its own: {tokenflow_ext.__file__}")
if not facts["build"]["cuda"]:
    sys.exit("tokenflow_ext was built without CUDA")
print("gpu_check:", *(f"{name}={value}" for name, value in facts.items()), sep="\n  ")
PY
}

# once NAME COMMAND...: run unless it passed since the last build; its output and
# verdict go to $LOG. Sets FAILED; sets UNFINISHED when the time is up.
once() {
  local name=$1 mark=$WORK/passed/$1 code=0
  shift
  [ -e "$mark" ] && return
  if [ "$(left)" -lt 15 ]; then
    UNFINISHED=$((UNFINISHED + 1))
    return
  fi
  mkdir -p "$(dirname "$mark")"
  { timeout "$(left)" "$@" >"$WORK/last.log" 2>&1; } || code=$?
  cat "$WORK/last.log" >>"$LOG"
  case $code in
    0)
      touch "$mark"
      say "passed   $name ($(tail -n 1 "$WORK/last.log" | tr -d =))"
      ;;
    5)
      touch "$mark"
      say "nothing  $name"
      ;;
    124)
      UNFINISHED=$((UNFINISHED + 1))
      say "time up  $name"
      ;;
    *)
      refused "$name" && return
      FAILED=$((FAILED + 1))
      say "FAILED   $name"
      tail -n 40 "$WORK/last.log"
      ;;
  esac
}

# A sanitizer that this machine refuses is skipped, with its own words as the reason.
refused() {
  local why
  case $1 in sanitize/*) ;; *) return 1 ;; esac
  why=$(grep -m 1 -i -E 'device not supported|not permitted|unable to (attach|launch)' \
    "$WORK/last.log") || return 1
  say "skipped  $1: $why"
}

start() {
  LOG=$FOLDER/$1.log FAILED=0 UNFINISHED=0
  need_build >/dev/null
  [ -d "$WORK/passed/$1" ] || : >"$LOG"
}

verdict() {
  say "$1: $FAILED failed, $UNFINISHED left to run; log in $LOG"
  [ "$FAILED" = 0 ] || exit 1
  [ "$UNFINISHED" = 0 ] || { say "time is up: run $0 $1 again to go on"; exit 75; }
}

stage_test() {
  start test
  local file
  for file in $(find tests/ops tests/nn -name 'test_*.py' | sort); do
    once "test/$file" "${PYTEST[@]}" "$file"
  done
  for file in $(grep -rlE '\b(device|cuda)\b' tests --include='test_*.py' | sort); do
    case $file in
      tests/ops/* | tests/nn/* | tests/packaging/*) ;;
      *) once "test/$file" "${PYTEST[@]}" "$file" -k cuda ;;
    esac
  done
  verdict test
}

stage_sanitize() {
  start sanitize
  local tool sanitizer
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || {
    say "skipped: compute-sanitizer is not installed"
    return
  }
  for tool in memcheck racecheck initcheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 once "sanitize/$tool" \
      "$sanitizer" --tool "$tool" --error-exitcode 86 \
      "${PYTEST[@]}" tests -m sanitize -k cuda
  done
  verdict sanitize
}

stage_bench() {
  start bench
  local file json=$WORK/bench goals
  goals=$FOLDER/$(date -u +%Y-%m-%d)-goals
  mkdir -p "$json"
  once bench/goals bash -o pipefail -c '"$0" bench/gpu_goals.py "$1.json" | tee "$1.md"' \
    "$PYTHON" "$goals"
  for file in $(grep -l '^OP = ' bench/bench_*.py); do
    once "bench/$file" "${PYTEST[@]}" "$file" -k cuda --benchmark-enable \
      --benchmark-only --benchmark-json="$json/$(basename "$file" .py).json"
  done
  if "$PYTHON" -c 'import safetensors, transformers' 2>/dev/null; then
    once bench/generate bash -o pipefail -c '"$0" bench/gpu_generate.py "$1.json" | tee "$1.md"' \
      "$PYTHON" "$FOLDER/$(date -u +%Y-%m-%d)-generate"
  else
    say "skipped: painting at the published size needs safetensors and transformers"
  fi
  if compgen -G "$json/*.json" >/dev/null; then
    "$PYTHON" bench/table.py "$FOLDER/$(date -u +%Y-%m-%d).json" "$json"/*.json |
      tee "$FOLDER/table.md"
  fi
  verdict bench
}

# A run that the time limit ends saves a checkpoint first, and goes on from it.
stage_train() {
  start train
  local runs=$WORK/runs task train=("$PYTHON" -m tokenflow train)
  local options=(--device cuda --resume auto --set run.tensorboard=false)
  "$PYTHON" -c 'import safetensors, tqdm, transformers, typer, yaml' || {
    say "skipped: it needs what pip install '.[train]' brings"
    return
  }
  once train/teacher "${train[@]}" teacher mini-128 "${options[@]}" -o "$runs/teacher"
  once train/tokenizer "${train[@]}" tokenizer mini-128 "${options[@]}" \
    -o "$runs/tokenizer" --set teacher.source="$runs/teacher/model"
  once train/judge bash -o pipefail -c '"$0" -m tokenflow evaluate reconstruction \
    --model "$1/tokenizer/model" --data scenes --device cuda --json | tee "$2.json"' \
    "$PYTHON" "$runs" "$FOLDER/$(date -u +%Y-%m-%d)-mini-128"
  once train/generation "${train[@]}" generation mini "${options[@]}" \
    -o "$runs/generation" --set run.batch=64 --set run.steps=20000 --set data.workers=8
  once train/drawn bash -o pipefail -c '"$0" -m tokenflow evaluate generation \
    --model "$1/generation/model" --device cuda --json | tee "$2.json"' \
    "$PYTHON" "$runs" "$FOLDER/$(date -u +%Y-%m-%d)-generation"
  for task in teacher tokenizer generation; do
    [ ! -d "$runs/$task/model" ] || cp -r "$runs/$task/model" "$FOLDER/$task"
    [ ! -f "$runs/$task/log.jsonl" ] || cp "$runs/$task/log.jsonl" "$FOLDER/$task.jsonl"
  done
  verdict train
}

look_around
for stage in ${*:-build test sanitize bench train}; do
  SECONDS=0
  case $stage in
    build | test | sanitize | bench | train) "stage_$stage" ;;
    *) stop "no stage $stage; there are build, test, sanitize, bench and train" ;;
  esac
done
