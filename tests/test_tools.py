"""What stands in tools/, run as a person does."""

import gzip
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, compiled, tiny_args

sys.path.insert(0, str(ROOT / "tools"))

import bench
import breakdown
import kernels
import plot
import scaling

import driftql
import fql
from common import UserError
from common.checkpoints import Policy
from common.cli import one_line_errors
from common.critics import Critic
from common.datasets import load_dataset

THEIR_AGENT = """
import pathlib
from typing import NamedTuple
import jax.numpy as jnp

class ToyAgent(NamedTuple):
    config: dict
    @classmethod
    def create(cls, seed, observations, actions, config):
        assert observations.shape == (1, 3) and actions.shape == (1, 2)
        return cls(config)
    def update(self, batch):
        sizes = {name: x.shape for name, x in sorted(batch.items())}
        pathlib.Path(__file__).with_name("seen").write_text(repr((self.config, sizes)))
        return self, {"loss": jnp.zeros(())}

def get_config():
    return {"batch_size": 256, "actor_hidden_dims": (512,), "num_candidates": 7, "alpha": 10}
"""

THEIR_DATASET = """
class Dataset(dict):
    @classmethod
    def create(cls, **fields):
        return cls(fields)
    def sample(self, batch_size):
        return {name: x[:batch_size] for name, x in self.items()}
"""


def test_bench_prints_a_row(tmp_path):
    for name, text in (("agents/drol.py", THEIR_AGENT), ("utils/datasets.py", THEIR_DATASET)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    argv = ["drol", "--authors", str(tmp_path), "--dims", "3", "2", "--rounds", "1", "--seconds", "0.1"]
    argv += ["--hidden-dims", "16", "--batch-size", "64", "--num-seeds", "2"]
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *argv]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    header, _, *rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["drol"]
    for row in rows:
        cells = dict(zip(header, row))
        assert float(cells["scan / host"]) > 0
        assert float(cells["scan / authors"]) > 0
        assert float(cells["GFLOP/update"]) > 0
    config, sizes = eval((tmp_path / "agents" / "seen").read_text())
    assert config == {"batch_size": 64, "actor_hidden_dims": (16,), "num_candidates": 16, "alpha": 10}
    assert sizes["next_observations"] == (64, 3) and sizes["actions"] == (64, 2) and sizes["terminals"] == (64,)
    assert "critic at all too" in output
    assert re.search(r"drol: 2 seeds side by side train \d+\.\d\d times as fast as one after the other", output)


def test_bench_says_what_the_authors_code_lacks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    dataset, args = bench.random_dataset(3, 2, size=100), tiny_args(fql)
    assert bench.make_authors(tmp_path, "fql", args, dataset, 1) is None
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "fql.py").write_text("import no_such_package")
    with pytest.raises(UserError, match="'no_such_package'; install what its requirements"):
        bench.make_authors(tmp_path, "fql", args, dataset, 1)
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "datasets.py").write_text("")
    for text, message in (
        ("no class", "SyntaxError"),
        ("def get_config():\n    return {}", "no class with a method `create`"),
    ):
        (tmp_path / "agents" / "fql.py").write_text(text)
        with pytest.raises(UserError, match=message):
            bench.make_authors(tmp_path, "fql", args, dataset, 1)
    for flags, message in (
        (["--authors", tmp_path / "nowhere"], "nowhere has no folder agents/"),
        (["--seconds", "nan"], "must be positive"),
        (["--json", tmp_path / "nowhere" / "a.json"], "there is no folder"),
        (["--json", tmp_path], "is a folder; name a file in it"),
        (["--round", "5"], "unknown argument --round: did you mean --rounds?"),
        (["--dims", "a", "3"], "argument --dims: invalid int value"),
    ):
        monkeypatch.setattr(sys, "argv", ["bench.py", "fql", *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            bench.main()
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_all_scripts_arguments_are_read_before_any_is_measured(monkeypatch):
    """IDQL's batches have another lower limit; it comes last."""
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["bench.py", "fql", "idql", "--batch-size", "64"])
    with pytest.raises(SystemExit):
        bench.main()
    monkeypatch.setattr(scaling, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--critic-batch-size 256"):
        scaling.main(["fql", "idql", "--batch-size", "64"])


def test_scaling_measures_and_draws_three_pictures(monkeypatch, tmp_path):
    for name, values in (("SEEDS", (2,)), ("PASSES", (4,)), ("SIZES", (1_000, 3_000))):
        monkeypatch.setattr(scaling, name, values)
    argv = ["drol", "--dims", "3", "2", "--rounds", "1", "--updates", "2", "--hidden-dims", "8", "--batch-size", "8"]
    scaling.main([*argv, "--out", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")])
    figures = json.loads((tmp_path / "a.json").read_text())["scripts"]["drol"]
    assert [x for x, _ in figures["updates_per_second"]] == [2]
    assert figures["counts"] == "num_candidates" and figures["milliseconds"][0][1] > 0
    (_, small), (_, large) = figures["mebibytes"]
    assert large - small == pytest.approx(2_000 * 4 * (3 + 2 + 1 + 1 + 1) / 2**20)  # float32 columns and int32 rows
    assert small > 1_000 * 4 * 8 / 2**20
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="no script 'driftl'"):
        scaling.main(["driftl"])


def test_q_of_a_transition_is_what_the_critic_says(script):
    args = tiny_args(script)
    agent = compiled(script.make_agent(args, 2, 2))
    state = agent.init(jax.random.PRNGKey(0))
    rng = np.random.default_rng(0)
    batch = {name: rng.uniform(-1, 1, (5, 2)) for name in ("observations", "actions", "next_observations")}
    batch |= {name: rng.uniform(0, 1, 5) for name in ("rewards", "masks")}
    q = plot.q_of(Policy(agent.act, agent, state, args, 0), batch)
    loss = agent.losses["critic"](state.params["critic"], state, batch, jax.random.PRNGKey(0))[1]
    assert q.shape == (5,) and np.ptp(q) > 1e-3
    assert q.mean() == pytest.approx(loss["train/q_mean"], rel=1e-5)
    if script.__name__ == "driftql":
        critic = Critic(args.hidden_dims).apply(state.params["critic"], batch["observations"], batch["actions"])
        np.testing.assert_allclose(q, critic.mean(axis=0), rtol=1e-5)


def test_values_are_drawn_of_mazes_only(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "NUM_TRANSITIONS", 100)
    sizes = dict(steps=2, log_every=2, eval_every=2, save_every=2, eval_episodes=1, eval_workers=1)
    where = dict(data_dir=str(data_dir), runs_dir=str(tmp_path))
    maze = driftql.main(tiny_args(driftql, "pointmaze-medium-navigate", **sizes, **where))
    monkeypatch.setattr(sys, "argv", ["plot.py", "values", str(maze), str(maze), "--out", str(tmp_path / "values.png")])
    plot.main()
    assert (tmp_path / "values.png").read_bytes()[:4] == b"\x89PNG"
    bandit = load_dataset("bandit")
    monkeypatch.setattr(plot, "load_dataset", lambda *_: bandit)
    with pytest.raises(UserError, match="bandit is not a maze with"):
        plot.draw_values([maze], [], tmp_path / "values.png")


def test_values_of_a_grid_are_those_of_one_combination(tmp_path):
    sizes = dict(steps=2, log_every=2, eval_every=2, save_every=2, eval_episodes=1, eval_workers=1)
    run = driftql.main(tiny_args(driftql, grid=("alpha=1,3",), runs_dir=str(tmp_path), **sizes))
    for words, message in (
        ([], "has a grid; choose one of alpha=1, alpha=3"),
        (["alpha=2"], "has no alpha=2"),
        (["alpha"], "write it as --grid alpha=3"),
        (["alpha=3"], "bandit is not a maze"),
    ):
        with pytest.raises(UserError, match=message):
            plot.draw_values([run], words, tmp_path / "values.png")


# What XLA writes about a program, shortened: a loop of updates with a gather, a product by cuBLAS, and in the middle of
# it a loop of three passes, with a graph before it and one in its body.
HLO = """HloModule jit_alone, is_scheduled=true

%take (p.0: f32[1000,8], p.1: s32[16]) -> f32[16,8] {
  %p.1 = s32[16]{0} parameter(1)
  %p.0 = f32[1000,8]{1,0} parameter(0)
  ROOT %gather.1 = f32[16,8]{1,0} gather(%p.0, %p.1), offset_dims={1}
}

%inner (t.1: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %t.1 = (s32[], f32[16,8]{1,0}) parameter(0)
  %x.1 = f32[16,8]{1,0} get-tuple-element(%t.1), index=1
  %scaled.1 = f32[16,8]{1,0} fusion(%x.1), kind=kLoop, calls=%scale
  ROOT %out.1 = (s32[], f32[16,8]{1,0}) tuple(%i.1, %scaled.1)
}

%update (t.2: (s32[], f32[1000,8], s32[16], /*index=3*/f32[8,4])) -> (s32[]) {
  %table.1 = f32[1000,8]{1,0} get-tuple-element(%t.2), index=1
  %rows.1 = s32[16]{0} get-tuple-element(%t.2), index=2
  %weights.1 = f32[8,4]{1,0} get-tuple-element(%t.2), index=3
  %taken.1 = f32[16,8]{1,0} fusion(%table.1, %rows.1), kind=kLoop, calls=%take, metadata={op_name="take"}
  %loop.1 = (s32[], f32[16,8]{1,0}) while(%start.1), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %x.2 = f32[16,8]{1,0} get-tuple-element(%loop.1), index=1
  %product.1 = (f32[16,4]{1,0}, s8[4194304]{0}) custom-call(%x.2, /*index=1*/%weights.1), custom_call_target="__cublas$lt$matmul"
  ROOT %out.2 = (s32[]) tuple(%i.2)
}

ENTRY %main (a.1: f32[1000,8]) -> (s32[]) {
  ROOT %while.1 = (s32[], f32[1000,8]{1,0}) while(%a.1), condition=%c.2, body=%update, backend_config={"known_trip_count":{"n":"5000"}}
}
"""  # noqa: E501
THUNKS = """000: kCopy          [source | next=001 (1)] kCopy
001: kWhile         [prev=000 (1) | sink]
condition:
    002: kCustomKernel  [source | sink] compare grid: [1, 1, 1]
  body:
    003: kCommandBuffer [source | next=005 (1)]
        004: kCustomKernel  [source | sink] take grid: [1, 1, 1]
    005: kWhile         [prev=003 (1) | next=009 (1)]
condition:
        006: kCustomKernel  [source | sink] compare grid: [1, 1, 1]
      body:
        007: kCommandBuffer [source | sink]
            008: kCustomKernel  [source | sink] scale grid: [1, 1, 1]
    009: kCublasLtMatmul [prev=005 (1) | sink] kCublasLtMatmul
010: kCommandBuffer [prev=001 (1) | sink]
    011: kCustomKernel  [source | sink] mean grid: [1, 1, 1]
"""


def test_kernels_of_one_update_are_counted():
    """What comes before and after the loop of updates is not; what is in a loop inside of it, as often as it runs."""
    take, scale, product = 16 * 8 * 4 + 16 * 4 + 16 * 8 * 4, 2 * 16 * 8 * 4, (16 * 8 + 8 * 4 + 16 * 4) * 4
    computations = kernels.parse(HLO)
    assert kernels.walk(computations, "update") == (take + 3 * scale + product, [3])
    counts = kernels.count(HLO, THUNKS)
    assert counts == {"kernels": 5, "graphs": 4, "outside": 1, "MiB moved": 0}


def test_kernels_says_what_is_missing(monkeypatch, capsys):
    def nothing(*_, **__):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(kernels.topologies, "get_topology_desc", nothing)
    for argv, line in (
        (["driftql"], 'no compiler for GPUs that fits this JAX: uv pip install -e ".[kernels]"'),
        (["drift"], "argument script: invalid choice: 'drift'"),
        (["driftql", "--dims", "0", "2"], "--dims must be positive."),
    ):
        with pytest.raises(SystemExit) as stop, one_line_errors("kernels"):
            kernels.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith(f"kernels: error: {line}")
        assert error.count("\n") == 1


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="this JAX's profiler records no instructions of a CPU")
def test_breakdown_adds_up_an_update():
    args = tiny_args(fql)
    seconds, tables = breakdown.measure(fql, args, (2, 2), updates=3)
    assert seconds > 0
    what, whose = tables["what"], tables["whose"]
    assert min(what["matrix products"], what["random numbers"], what["gathers"]) > 0
    passes = ("Critic, backward", "Critic, forward", "Flow, backward", "Flow, forward", "Actor, forward")
    assert min(whose[name] for name in passes) > 0
    np.testing.assert_allclose(sum(what.values()), sum(whose.values()))


def test_breakdown_of_a_gpu_counts_each_kernel_once(tmp_path):
    name = lambda kind, value, **of: {"ph": "M", "pid": 1, "name": kind, "args": {"name": value}} | of  # noqa: E731
    kernel = {"ph": "X", "pid": 1, "dur": 2.5, "args": {"hlo_op": "product.1"}}
    events = [
        name("process_name", "/device:GPU:0"),
        name("thread_name", "Stream #13(Compute)", tid=13),
        name("thread_name", "XLA Ops", tid=99),
        kernel | {"name": "sm90_gemm", "tid": 13},
        kernel | {"name": "sm90_gemm", "tid": 13},
        kernel | {"name": "product.1", "tid": 99},
        {"ph": "X", "pid": 1, "tid": 13, "dur": 9.0, "name": "MemcpyH2D"},
    ]
    (tmp_path / "plugins").mkdir()
    with gzip.open(tmp_path / "plugins" / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert breakdown.durations(tmp_path) == {"product.1": 5e-6}
    # What loops hold is counted, and not the loops too.
    seconds = {"product.1": 1.0, "taken.1": 2.0, "scaled.1": 4.0, "loop.1": 4.0, "while.1": 7.0, "memset": 8.0}
    assert breakdown.add_up(seconds, kernels.parse(HLO)) == {
        "what": {"matrix products": 1.0, "gathers": 2.0, "elementwise, sums": 4.0, "other kernels": 8.0},
        "whose": {"outside of them": 7.0, "other kernels": 8.0},
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fql", "--updates", "0"], "--dims and --updates must be positive."),
        (["fql", "--grid", "alpha=1,3"], "--grid: a combination costs what a seed does; measure --num-seeds."),
    ],
)
def test_breakdown_says_what_is_wrong(argv, message, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors("breakdown"):
        breakdown.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"breakdown: error: {message}"


def test_a_profiler_that_sees_nothing_is_one_line(monkeypatch):
    monkeypatch.setattr(breakdown, "durations", lambda _: {})
    with pytest.raises(UserError, match="recorded nothing: a GPU needs CUPTI"):
        breakdown.measure(fql, tiny_args(fql), (2, 2), updates=3)
