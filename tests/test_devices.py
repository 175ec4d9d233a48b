"""Chains over several devices, and over several processes: the law is the same, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_problems import WALK, collect, interrupted, normal, same
from gibbs_problems import Y, persistence
from problems import level

import mcx
from mcx.errors import CheckpointMismatch, MethodError
from mcx.run.store import Store
from mcx.testing import check_mean

CPUS = jax.devices("cpu")
HOST = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[3], 2, int(sys.argv[4]), heartbeat_timeout_seconds=10)
sys.path.insert(0, sys.argv[1])
import numpy as np
from problems import level
from checkpoint_problems import WALK, collect
import mcx
done = mcx.run(
    WALK, key=3, num_steps=int(sys.argv[5]), num_chains=8, num_discard=50, collect=collect, devices="all",
    chunk_size=20, progress=False, checkpoint=mcx.Checkpoint(sys.argv[2], interval=0.0),
)
np.save(sys.argv[2] + "-" + sys.argv[4] + ".npy", done.draws["x"])
"""

INFER_HOST = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[3], 2, int(sys.argv[4]), heartbeat_timeout_seconds=10)
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_devices import replicates
post = replicates(sys.argv[5], devices="all")
np.savez(sys.argv[2] + "-" + sys.argv[4], z=post.log_evidence or 0.0, **post.draws)
"""


def replicates(method, **options):
    """A run that every process of the tests makes its part of."""
    bound, settings, num_chains = {
        "TemperedSMC": (persistence(Y[0]), mcx.TemperedSMC(64), 4),
        "SMC2": (persistence(Y[0]), mcx.SMC2(32, 8), 4),
        "SMC2 that grows": (
            persistence(Y[0]),
            mcx.SMC2(32, 2, grow=True, least_acceptance=0.95),
            4,
        ),
        "ChEES": (normal(np.arange(3.0)), mcx.ChEES(num_warmup=200, num_samples=200), 64),
    }[method]
    options = {"key": 3, "num_chains": num_chains, "progress": False, "warnings": "ignore", **options}
    return mcx.infer(bound, settings, **options)


def walk(devices, num_steps=300, **options):
    return mcx.run(
        WALK,
        key=3,
        num_steps=num_steps,
        num_chains=8,
        num_discard=50,
        collect=collect,
        chunk_size=20,
        progress=False,
        devices=devices,
        **options,
    )


@pytest.fixture(scope="module")
def whole():
    return walk(None)


@pytest.fixture(scope="module")
def spread():
    return walk(4)


@pytest.mark.parametrize("devices", [4, 2, "all", CPUS[2:3], jax.make_mesh((4,), ("any",), devices=CPUS)])
def test_chains_do_not_depend_on_where_they_run(devices, whole):
    """Up to rounding: XLA vectorises another number of chains otherwise. Keys and counts are the same."""
    found = walk(CPUS if devices == "all" else devices)
    np.testing.assert_allclose(found.draws["x"], whole.draws["x"], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.draws["count"], whole.draws["count"])
    keys = [jax.random.key_data(run.state["key"]) for run in (found, whole)]
    np.testing.assert_array_equal(*keys)


def test_every_device_holds_its_own_chains():
    state = walk(4).state["x"]
    assert state.sharding.device_set == set(CPUS)
    assert state.sharding.shard_shape(state.shape) == (2, 3)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (3, "cannot be shared evenly by 3 devices"),
        (5, "out of range"),
        (0, "out of range"),
        (True, "out of range"),
        ("gpu", "out of range"),
        ([], "out of range"),
        ([0, 1], "out of range"),
        ([CPUS[0], CPUS[0]], "out of range"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices, message):
    with pytest.raises(MethodError, match=message):
        walk(devices)


def test_a_run_over_devices_goes_on(tmp_path, spread):
    """With the same bits; on other devices it is refused."""
    interrupted(tmp_path, 6, devices=4, num_chains=8)
    assert 0 < Store(tmp_path).read().steps < 300
    with pytest.raises(CheckpointMismatch, match="devices"):
        walk(2, checkpoint=tmp_path)
    assert same(spread, walk(4, checkpoint=tmp_path))


LEVEL = level(np.linspace(0, 1, 12, dtype=np.float32))


def test_markov_chains_over_devices(key):
    method = mcx.RandomWalk(num_warmup=300, num_samples=1000)
    options = {"key": key, "devices": CPUS, "num_chains": 64, "progress": False, "warnings": "ignore"}
    post = mcx.infer(normal(np.arange(3.0)), method, **options)
    variance = 1 / (1 / 25 + 3)
    # the mean of every chain is independent of the others'
    check_mean(post["mu"].mean(1), 3 * variance, delta=0.1 * variance**0.5, independent=True)


@pytest.mark.slow
def test_filters_over_devices(key):
    found = [
        mcx.filter(LEVEL, params={"s": 0.5}, devices=d, key=key, num_chains=4, progress=False)
        for d in (None, CPUS)
    ]
    np.testing.assert_allclose(found[0].stats["log_evidence"], found[1].stats["log_evidence"], rtol=1e-4)
    np.testing.assert_allclose(found[0].mean["x"], found[1].mean["x"], rtol=1e-3)


def test_particles_over_devices(key):
    """One cloud, shared: E[evidence estimate] is the evidence, whatever is summed on which device."""
    y = np.asarray([0.4, -0.3, 1.5, 2.0, 0.1], np.float32)
    times = np.arange(5.0)
    covariance = 1.0 + 0.25 * np.minimum(times[:, None], times) + np.eye(5)
    truth = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    found = [
        mcx.filter(level(y), params={"s": 0.5}, num_particles=400, devices=CPUS, key=k, progress=False)
        for k in jax.random.split(key, 60)
    ]
    (particles,) = jax.tree.leaves(found[0].state.particles)
    assert particles.sharding.shard_shape(particles.shape) == (1, 100)
    check_mean(np.exp([f.log_evidence - truth for f in found]), 1.0, delta=0.15, independent=True)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["ancestors", "full"])
def test_histories_of_particles_over_devices(history):
    """They are those of the weights: the weighted mean of what is kept is the mean."""
    found = mcx.filter(
        LEVEL,
        params={"s": 0.5},
        num_particles=100,
        devices=CPUS,
        history=history,
        quantiles=(0.5,),
        key=0,
        progress=False,
    )
    assert found.record.ancestors.shape == (1, 12, 100)
    if history == "full":
        (x,) = jax.tree.leaves(found.record.particles)
        mean = (np.exp(found.record.log_w) * x).sum(-1)
        np.testing.assert_allclose(mean, found.mean["x"].reshape(mean.shape), rtol=1e-4, atol=1e-5)


def test_particles_that_cannot_be_shared_are_refused():
    with pytest.raises(MethodError, match=r"101 particles(.|\n)*num_particles=100"):
        mcx.filter(LEVEL, params={"s": 0.5}, num_particles=101, devices=CPUS, key=0, progress=False)


@pytest.mark.slow
def test_smoothers_over_devices_go_on(key, tmp_path):
    """And one with another functional is refused."""

    def smooth(functional, **options):
        options = {"params": {"s": 0.5}, "key": key, "num_chains": 4, "progress": False, **options}
        return mcx.smooth(LEVEL, functional, method=mcx.PPG(20, num_warmup=2, num_samples=4), **options)

    options = {"devices": CPUS, "checkpoint": tmp_path}
    found = [smooth(lambda xp, x, t: xp * x, **options) for _ in range(2)]
    np.testing.assert_array_equal(found[0].draws, found[1].draws)
    assert len(np.unique(found[0].draws)) == found[0].draws.size
    with pytest.raises(CheckpointMismatch, match="another compiled functions"):
        smooth(lambda xp, x, t: xp + x, **options)


@pytest.mark.slow
def test_smoothers_do_not_depend_on_devices(key):
    found = [
        mcx.smooth(
            LEVEL,
            lambda xp, x, t: xp * x,
            params={"s": 0.5},
            method=mcx.PPG(20, num_warmup=2, num_samples=4),
            devices=d,
            key=key,
            num_chains=4,
            progress=False,
        )
        for d in (None, CPUS)
    ]
    np.testing.assert_allclose(found[0].draws, found[1].draws, rtol=1e-3)


@pytest.mark.slow
def test_particle_gibbs_over_devices(key):
    method = mcx.ParticleGibbs(num_warmup=5, num_samples=5, states=mcx.ConditionalSMC(10))
    post = mcx.infer(LEVEL, method, key=key, devices=CPUS, warnings="ignore", progress=False)
    assert post["x"].shape == (4, 5, 12) and np.isfinite(post["x"]).all()


# --- several processes --------------------------------------------------------------------------------


def start_hosts(path, argument=300, script=HOST):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                str(Path(__file__).parent),
                str(path),
                str(port),
                str(i),
                str(argument),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for i in range(2)
    ]


def finish(hosts):
    for host in hosts:
        out, _ = host.communicate(timeout=180)
        assert host.returncode == 0, out


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path, spread):
    """Both end with all draws, the same as one process'; both wrote files; then a kill, and a resumption."""
    path = tmp_path / "run"
    finish(start_hosts(path))
    for i in range(2):
        np.testing.assert_array_equal(np.load(f"{path}-{i}.npy"), spread.draws["x"])
    files = {file.file[-8:-4] for entry in Store(path).read().chunks for file in entry.files}
    assert files == {"0000", "0001"}
    saved = mcx.load(path)
    assert saved.complete
    np.testing.assert_array_equal(saved.draws["x"], spread.draws["x"])

    steps, path = 4000, tmp_path / "killed"
    hosts, store = start_hosts(path, steps), Store(path)
    while hosts[1].poll() is None and (
        not path.exists() or (store.read() is None or store.manifest.steps < 200)
    ):
        time.sleep(0.005)
    hosts[1].send_signal(signal.SIGKILL)
    hosts[1].communicate()
    hosts[0].communicate(timeout=120)  # JAX ends it, as it cannot go on alone
    assert 200 <= store.read().steps < steps
    finish(start_hosts(path, steps))
    alone = walk(4, num_steps=steps)
    np.testing.assert_array_equal(np.load(f"{path}-0.npy"), alone.draws["x"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TemperedSMC", "SMC2", "SMC2 that grows"])
def test_replicates_of_smc_over_two_processes(method, tmp_path):
    """Both end with all replicates, those of one process but for rounding."""
    finish(start_hosts(tmp_path / "run", method, INFER_HOST))
    one, two = (np.load(tmp_path / f"run-{i}.npz") for i in range(2))
    alone = replicates(method)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["z"], alone.log_evidence, atol=1e-3)
    np.testing.assert_allclose(one["phi"], alone["phi"], atol=1e-3)


@pytest.mark.slow
def test_chains_that_learn_from_each_other_over_two_processes(tmp_path):
    """ChEES: both end with all chains, right ones; their step size was learned from all of them."""
    finish(start_hosts(tmp_path / "run", "ChEES", INFER_HOST))
    one, two = (np.load(tmp_path / f"run-{i}.npz")["mu"] for i in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (64, 200)
    variance = 1 / (1 / 25 + 3)
    check_mean(one.mean(1), 3 * variance, delta=0.1 * variance**0.5, independent=True)
