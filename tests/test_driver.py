"""The driver: chunking, interrupts, progress, generic kernels."""

import io
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import regression, regression_data

import mcx
from mcx.errors import KeyTypeError, MethodError
from mcx.run.progress import make_progress


class AR1:
    """x' = x / 2 + noise: one chain, whose law at every step is known."""

    def init(self, key):
        return jax.random.normal(key) * 2 / jnp.sqrt(3.0)

    def step(self, key, state):
        new = 0.5 * state + jax.random.normal(key)
        return new, {"moved": new != state}


class Summing:
    """Adds up its inputs, so that a lost or repeated step shows."""

    def init(self, key):
        return jnp.zeros(())

    def step(self, key, state, u):
        return state + u, None


def run_ar1(key, **options):
    options = {"num_steps": 60, "num_chains": 3, "progress": False, **options}
    return mcx.run(ALGORITHM, key=key, collect=state_of, **options)


def state_of(state, info):
    return state


ALGORITHM = AR1()


@pytest.mark.parametrize("chunk_size", [1, 7, 59, 60, 1000])
def test_same_bits_for_every_chunk_length(key, chunk_size):
    reference = run_ar1(jax.random.key(1), chunk_size=13)
    assert run_ar1(jax.random.key(1), chunk_size=chunk_size).draws.tobytes() == reference.draws.tobytes()


def test_nuts_has_the_same_bits_for_every_chunk_length(key):
    method = mcx.NUTS(num_warmup=60, num_samples=40)
    runs = [
        mcx.run(
            method.kernel(target),
            target.data,
            key=key,
            num_steps=100,
            num_discard=60,
            init=start,
            inputs=method.inputs(),
            chunk_size=chunk,
            progress=False,
        )
        for chunk in (1, 9, 100)
        for target, start in [_nuts_setup()]
    ]
    for run in runs[1:]:
        for a, b in zip(jax.tree.leaves(run.draws), jax.tree.leaves(runs[0].draws), strict=True):
            assert a.tobytes() == b.tobytes()
        assert run.stats["step_size"].tobytes() == runs[0].stats["step_size"].tobytes()


def _nuts_setup():
    from mcx.methods.initial_points import InitialPoints
    from mcx.model.compile import compile_model

    x, y = regression_data()
    target = compile_model(regression(x, y=y))
    ones = jnp.ones(4)
    return target, InitialPoints(jnp.zeros((4, target.dim)), 2 * ones, jnp.full(4, 100, jnp.int32))


def test_inputs_are_each_seen_once():
    inputs = np.random.default_rng(0).normal(size=777).astype(np.float32)
    run = mcx.run(
        Summing(), key=0, num_steps=777, num_chains=2, inputs=inputs, collect=state_of, progress=False
    )
    np.testing.assert_allclose(run.draws[0], np.cumsum(inputs.astype(np.float64)), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run.draws[0], run.draws[1])


def test_discarded_steps_are_run_but_not_kept():
    whole = run_ar1(3)
    part = run_ar1(3, num_discard=20)
    assert part.draws.tobytes() == whole.draws[:, 20:].tobytes()
    assert part.num_steps == 60


def test_chains_are_independent_and_do_not_depend_on_their_number(key):
    few, many = run_ar1(key, num_chains=2), run_ar1(key, num_chains=5)
    np.testing.assert_array_equal(few.draws, many.draws[:2])
    assert len({chain.tobytes() for chain in many.draws}) == 5


def test_stationary_law(key):
    run = run_ar1(key, num_steps=2000, num_chains=64)
    # x' = x/2 + e is stationary with variance 4/3; chains are independent replicates
    mcx.testing.check_mean(run.draws.mean(1), 0.0, delta=0.05, independent=True)
    mcx.testing.check_mean((run.draws**2).mean(1), 4 / 3, delta=0.1, independent=True)


def test_blackjax_algorithms_run(key):
    import blackjax

    algorithm = blackjax.hmc(lambda x: -0.5 * jnp.sum(x**2), 0.5, jnp.ones(2), 5)
    run = mcx.run(
        algorithm,
        key=key,
        num_steps=500,
        num_chains=8,
        init=jnp.zeros((8, 2)),
        collect=lambda state, info: state.position,
        progress=False,
    )
    assert run.draws.shape == (8, 500, 2)
    mcx.testing.check_mean(run.draws[:, 50:], 0.0, delta=0.2)


def test_interrupt_finishes_the_chunk_and_returns_what_there_is():
    class Slow(AR1):
        def step(self, key, state):
            # enough arithmetic that the run cannot end before the signal comes
            busy = jax.lax.fori_loop(0, 20_000, lambda i, x: jnp.cos(x), state)
            return super().step(key, state + 0 * busy)[0], None

    def interrupt():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    algorithm = Slow()
    options = {"key": 0, "num_chains": 1, "collect": state_of, "progress": False}
    mcx.run(algorithm, num_steps=1, **options)  # compile first: the signal must come while it runs
    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    run = mcx.run(algorithm, num_steps=1_000_000, **options)
    thread.join()
    assert not run.complete and run.interrupted
    assert 0 < run.num_steps < 1_000_000
    assert run.draws.shape == (1, run.num_steps)
    assert np.isfinite(run.draws).all()
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_in_other_threads_leave_signals_alone():
    results = []
    thread = threading.Thread(target=lambda: results.append(run_ar1(0)))
    thread.start()
    thread.join()
    assert results[0].complete


def test_non_finite_draws_are_counted():
    class Broken(AR1):
        def step(self, key, state):
            return jnp.where(state > 2.0, jnp.nan, state + 1.0), None

    run = mcx.run(Broken(), key=0, num_steps=10, num_chains=1, collect=state_of, progress=False)
    assert run.num_nonfinite == int((~np.isfinite(run.draws)).sum()) > 0


def test_compile_and_run_times_are_apart():
    algorithm = AR1()
    first = mcx.run(algorithm, key=0, num_steps=50, collect=state_of, progress=False)
    again = mcx.run(algorithm, key=1, num_steps=80, collect=state_of, progress=False)
    assert first.compile_time > 10 * again.compile_time  # the second run finds the program in the cache


@pytest.mark.parametrize("option", ["num_steps", "num_chains", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_counts_are_checked(option, value):
    if (option, value) == ("num_steps", 0):
        started = run_ar1(0, num_steps=0)
        assert started.draws is None and started.complete and started.num_steps == 0
        return
    with pytest.raises(MethodError, match=option):
        run_ar1(0, **{option: value})


def test_what_is_no_kernel_is_refused():
    class Stranger:
        """Has a kernel's methods without being one: a plain algorithm's are called otherwise."""

        def init(self, data, key, start): ...
        def step(self, data, key, state, u): ...
        def collect(self, state, info): ...
        def emit(self, data, draw): ...

    with pytest.raises(MethodError, match="derive from mcx.Kernel"):
        mcx.run(Stranger(), key=0, num_steps=1)
    with pytest.raises(MethodError, match="no kernel"):
        mcx.run(mcx.NUTS(), key=0, num_steps=1)


def test_a_kernel_may_end_the_run_and_its_blocks():
    """Blocks of four steps: each ends by clearing the count, whatever the chunks; step 30 ends the run."""

    class Blocks(mcx.Kernel):
        block_size = 4

        def init(self, data, key, start):
            return jnp.int32(0)

        def step(self, data, key, state, u):
            return state + 1, None

        def end_block(self, state):
            return state * 0

        def collect(self, state, info):
            return state, {"count": state}

        def stop(self, stats):
            return len(stats["count"]) and self.calls.append(len(stats["count"])) or sum(self.calls) >= 30

    for chunk_size in (3, 7, 10):
        kernel = Blocks()
        kernel.calls = []
        run = mcx.run(kernel, key=0, num_steps=60, num_chains=2, chunk_size=chunk_size, progress=False)
        assert not (run.complete or run.interrupted) and run.num_steps == 30 + (-30) % chunk_size
        np.testing.assert_array_equal(run.draws[0], np.arange(run.num_steps) % 4 + 1)


def test_steps_are_traced_once_however_chains_start():
    """A run that is gone on with in parts pays for a start alone; with the same bits as in one."""
    traced = []

    class Counts(mcx.Kernel):
        def init(self, data, key, start):
            return jnp.float32(2.0) if start is None else start

        def step(self, data, key, state, u):
            traced.append(None)
            return state * u, None

        def collect(self, state, info):
            return state, {}

    kernel, u = Counts(), np.linspace(0.5, 2.0, 9, dtype=np.float32)
    options = {"key": 0, "num_chains": 2, "progress": False}
    first = mcx.run(kernel, num_steps=4, inputs=u[:4], **options)
    number = len(traced)
    second = mcx.run(kernel, num_steps=5, inputs=u[4:], init=first.state, **options)
    assert len(traced) == number > 0
    np.testing.assert_array_equal(second.draws[0], 2 * np.cumprod(u)[4:])


def test_key_is_required():
    with pytest.raises(KeyTypeError, match="required"):
        run_ar1(None)


def test_lines_where_there_is_no_terminal(capsys):
    run_ar1(0, progress="lines", title="demo")
    text = capsys.readouterr().err
    assert "demo: compiling" in text
    assert "60/60" in text
    assert "\r" not in text


def test_bar_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "200")  # older releases of tqdm ask the real terminal otherwise
    display = make_progress(True, 10, "NUTS")
    display.compiling()
    assert "compiling" in sys.stderr.getvalue()
    display.started()
    display.update(10, "sampling", {"step size": 0.12345, "divergences": 3})
    display.close(True)
    text = sys.stderr.getvalue()
    assert "10/10" in text and "step size=0.123" in text and "divergences=3" in text and "done" in text


def test_silence(capsys):
    run_ar1(0, progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_own_display():
    class Record(list):
        def compiling(self):
            self.append("compiling")

        def started(self):
            self.append("started")

        def update(self, done, phase, report):
            self.append((done, phase))

        def close(self, complete):
            self.append(("close", complete))

    record = Record()
    run_ar1(0, progress=record, num_discard=20, chunk_size=20)
    assert record[:2] == ["compiling", "started"]
    assert record[2:] == [(20, "warm-up"), (40, "sampling"), (60, "sampling"), ("close", True)]


def test_unknown_display():
    with pytest.raises(MethodError, match="progress"):
        run_ar1(0, progress="colourful")
