"""Do two inference methods agree on a model? Eight schools by NUTS and by a random walk.

The sliced Wasserstein distance between two posteriors is a number for how far apart their draws are, in
units of posterior standard deviations, over all parameters jointly. It is not zero for two runs of the same
method; the test of two samples says whether it is larger than it would be. Run it with `python
examples/compare_posteriors.py`.
"""

import warnings
from pathlib import Path

from eight_schools import EFFECT, STANDARD_ERROR, eight_schools

import mcx
from mcx.estimators.sliced import sliced_wasserstein, two_sample_test


def main(folder: Path = Path("out")):
    posterior = eight_schools(STANDARD_ERROR, y=EFFECT)
    nuts = mcx.NUTS(target_accept=0.99)
    runs = {
        "NUTS": mcx.infer(posterior, nuts, key=0, progress=False),
        "NUTS again": mcx.infer(posterior, nuts, key=1, progress=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short random walk: that is the point
        for name, steps in (("random walk, 5000 steps", 5_000), ("random walk, 300 steps", 300)):
            method = mcx.RandomWalk(num_warmup=1000 if steps > 1000 else 20, num_samples=steps)
            runs[name] = mcx.infer(posterior, method, key=2, progress=False)

    lines = [f"{'compared with NUTS':26s} {'distance':>20s} {'of one law':>11s} {'p-value':>8s}"]
    for name, run in runs.items():
        if name == "NUTS":
            continue
        distance = sliced_wasserstein(runs["NUTS"], run, key=3)
        test = two_sample_test(runs["NUTS"], run, key=4)
        value = f"{float(distance.value):.4f} +- {float(distance.se):.4f}"
        lines.append(f"{name:26s} {value:>20s} {float(test.floor):11.4f} {float(test.p_value):8.3f}")
    print("\n".join(lines))
    print(
        "\nDistances are between all draws; the test thins them to independent ones, which lie further apart."
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare_posteriors.txt").write_text("\n".join(lines) + "\n")
    print(f"Saved the table:  {folder / 'compare_posteriors.txt'}")


if __name__ == "__main__":
    main()
