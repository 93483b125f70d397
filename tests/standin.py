"""A script that leaves run directories as the real ones do, in a second and without JAX, for the tests of the tools."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in ("env", "task", "runs-dir", "resume", "alpha", "fail"):
    parser.add_argument(f"--{flag}")
parser.add_argument("--seed", type=int)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--no-progress", action="store_true")
args = parser.parse_args()
if args.fail:
    print("a warning\nstandin: error: there is no such file.", file=sys.stderr)
    print(
        "--------------------\nFor simplicity, JAX has removed its internal frames from the traceback", file=sys.stderr
    )
    sys.exit(int(args.fail))

if args.resume:
    run = Path(args.resume)
    steps = json.loads((run / "config.json").read_text())["args"]["steps"]
else:
    run, steps = Path(args.runs_dir) / f"{args.env}__standin__{args.seed}__{time.time_ns()}", args.steps
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"algo": "standin", "args": vars(args)}))
    (run / "metrics.csv").write_text("step,seed,losses/critic\n")
checkpoint = run / "checkpoint.msgpack"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
with open(run / "starts.txt", "a") as file:
    file.write(f"{step}\n")

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
while step < steps and not stopping:
    time.sleep(0.1)
    step += 20
    checkpoint.write_text(str(step))
    with open(run / "metrics.csv", "a") as file:
        file.write(f"{step},0,1.0\n")
if step < steps:
    sys.exit(143)
(run / "result.json").write_text(json.dumps({"algo": "standin", "steps": step}))
print(run)
