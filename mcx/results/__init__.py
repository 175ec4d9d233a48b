"""Results of runs: posteriors, summaries, predictions, conversion to ArviZ."""

from mcx.results.posterior import Posterior, RunInfo
from mcx.results.predict import predict
from mcx.results.predictions import Predictions

__all__ = ["Posterior", "Predictions", "RunInfo", "predict"]
