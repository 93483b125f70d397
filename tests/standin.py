"""A script without JAX that leaves run directories as the real ones do, in a second, for the tests of the sweep."""

import argparse
import json
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.system import lock

parser = argparse.ArgumentParser()
for flag in ("env", "task", "run-dir", "alpha", "fail"):
    parser.add_argument(f"--{flag}")
parser.add_argument("--seed", type=int)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--no-progress", action="store_true")
args = parser.parse_args()
if args.fail:
    print("a line of standard output")
    print("a warning\nstandin: error: there is no such file.", file=sys.stderr)
    print("------\nFor simplicity, JAX has removed its internal frames from the traceback", file=sys.stderr)
    sys.exit(int(args.fail))

stopping: list[bool] = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
run, files = Path(args.run_dir), ExitStack()
run.mkdir(parents=True, exist_ok=True)
if not lock(run, files):
    sys.exit(f"standin: error: {run}: another process is working on this run.")
checkpoint = run / "checkpoint.msgpack"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
with open(run / "starts.txt", "a") as file:
    file.write(f"{step}\n")
(run / "config.json").write_text(json.dumps({"algo": "standin", "args": {"env": args.env, "steps": args.steps}}))
while step < args.steps and not stopping:
    time.sleep(0.1)
    step += 20
    with open(run / "train.csv", "a") as file:
        file.write(f"{step},0,1.0\n")
    (run / "new").write_text(str(step))
    (run / "new").replace(checkpoint)
if step < args.steps:
    sys.exit(143)
score = {"score": (args.seed + 1) / 16, "algo": "standin", "steps": step}
(run / "new").write_text(json.dumps(score))
(run / "new").replace(run / "result.json")
print(run)
