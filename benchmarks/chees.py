"""mcx's ChEES against NumPyro's NUTS on eight real posteriors: effective draws a second, compiling included.

Every sampler runs every posterior in a process of its own, without a persistent cache, one process at a time,
NumPyro right after ChEES. ChEES runs as it comes: 64 chains, 200 + 500 steps, from the default start; NUTS
with 4 vectorised chains, 1000 + 1000 steps. The columns are those of nuts.py, where "ESS/s all" includes
compilation. Sample sizes differ: ESS/s says what the wait was good for, not what a draw is worth.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nuts import QUICK, in_fresh_process, markdown, ratios, summarise

SUBJECT, PEER = "chees", "numpyro"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three posteriors, one seed")
    parser.add_argument("--seeds", type=int, help="runs a sampler and posterior (default 3)")
    parser.add_argument("--posteriors", nargs="+", help="those whose names start so (default all)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    args = parser.parse_args()
    seeds = args.seeds or (1 if args.quick else 3)

    from posteriordb import PROBLEMS

    names = QUICK if args.quick else tuple(PROBLEMS)
    if args.posteriors:
        names = tuple(n for n in PROBLEMS if n.startswith(tuple(args.posteriors)))
    table = []
    for posterior in names:
        for sampler in (SUBJECT, PEER):
            table.append(summarise(in_fresh_process(posterior, sampler, seeds)))
            print(f"{posterior} {sampler}: {table[-1]['ess_per_s_all']:.0f} ESS/s", file=sys.stderr)
    means = ratios(table, SUBJECT)
    text = markdown(table, means, SUBJECT)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"summary": table, "geometric_means": means}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
