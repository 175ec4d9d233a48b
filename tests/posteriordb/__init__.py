"""Eight posteriors of stan-dev/posteriordb: models, data, reference answers. See tests/data/posteriordb."""

from posteriordb.compare import Comparison, compare, key_of
from posteriordb.problems import PROBLEMS, Problem

__all__ = ["PROBLEMS", "Comparison", "Problem", "compare", "key_of"]
