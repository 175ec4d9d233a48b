"""One law of every class of distributions that NumPyro exports, batched over two members where it can be."""

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

TWO = jnp.array([0.7, 1.6])
SHARES = jnp.array([0.3, 0.6])
ROWS = jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
COVARIANCE = jnp.array([[1.0, 0.4], [0.4, 2.0]])
ROOT = jnp.linalg.cholesky(COVARIANCE)

LAWS = {
    "AsymmetricLaplace": lambda: dist.AsymmetricLaplace(TWO, 1.0, 1.5),
    "AsymmetricLaplaceQuantile": lambda: dist.AsymmetricLaplaceQuantile(TWO, 1.0, 0.3),
    "BernoulliLogits": lambda: dist.BernoulliLogits(TWO),
    "BernoulliProbs": lambda: dist.BernoulliProbs(SHARES),
    "Beta": lambda: dist.Beta(TWO, 1.5),
    "BetaBinomial": lambda: dist.BetaBinomial(TWO, 1.5, 6),
    "BetaNegativeBinomial": lambda: dist.BetaNegativeBinomial(TWO + 4, 1.5, 3.0),
    "BetaProportion": lambda: dist.BetaProportion(SHARES, 5.0),
    "BinomialLogits": lambda: dist.BinomialLogits(TWO, 5),
    "BinomialProbs": lambda: dist.BinomialProbs(SHARES, 5),
    "CAR": lambda: dist.CAR(jnp.array([0.0, 1.0]), 0.4, 2.0, jnp.array([[0.0, 1.0], [1.0, 0.0]])),
    "CategoricalLogits": lambda: dist.CategoricalLogits(jnp.log(ROWS)),
    "CategoricalProbs": lambda: dist.CategoricalProbs(ROWS),
    "Cauchy": lambda: dist.Cauchy(TWO, 0.5),
    "Chi2": lambda: dist.Chi2(TWO + 2),
    "CirculantNormal": lambda: dist.CirculantNormal(jnp.zeros(4), jnp.array([2.0, 0.5, 0.2, 0.5])),
    "Dagum": lambda: dist.Dagum(TWO, 4.0, 1.0),
    "Delta": lambda: dist.Delta(TWO),
    "Dirichlet": lambda: dist.Dirichlet(ROWS * 5),
    "DirichletMultinomial": lambda: dist.DirichletMultinomial(ROWS * 5, 4),
    "DiscreteUniform": lambda: dist.DiscreteUniform(jnp.array([1, 2]), jnp.array([3, 4])),
    "DoublyTruncatedPowerLaw": lambda: dist.DoublyTruncatedPowerLaw(-TWO, 1.0, 3.0),
    "EulerMaruyama": lambda: dist.EulerMaruyama(
        jnp.arange(3.0), lambda x, t: (-0.3 * x, 0.5), dist.Normal(0.0, 1.0)
    ),
    "ExpandedDistribution": lambda: dist.Normal(0.5, 1.0).expand([2]),
    "Exponential": lambda: dist.Exponential(TWO),
    "FoldedDistribution": lambda: dist.FoldedDistribution(dist.Normal(TWO, 1.0)),
    "Gamma": lambda: dist.Gamma(TWO + 1, 2.0),
    "GammaPoisson": lambda: dist.GammaPoisson(TWO + 1, 2.0),
    "GaussianCopula": lambda: dist.GaussianCopula(dist.Gamma(TWO, 2.0), jnp.array([[1.0, 0.4], [0.4, 1.0]])),
    "GaussianCopulaBeta": lambda: dist.GaussianCopulaBeta(TWO, 1.5, jnp.array([[1.0, 0.4], [0.4, 1.0]])),
    "GaussianRandomWalk": lambda: dist.GaussianRandomWalk(TWO, 3),
    "GaussianStateSpace": lambda: dist.GaussianStateSpace(3, 0.5 * jnp.eye(2), COVARIANCE),
    "GeometricLogits": lambda: dist.GeometricLogits(TWO),
    "GeometricProbs": lambda: dist.GeometricProbs(SHARES),
    "Gompertz": lambda: dist.Gompertz(TWO, 2.0),
    "Gumbel": lambda: dist.Gumbel(TWO, 1.0),
    "HalfCauchy": lambda: dist.HalfCauchy(TWO),
    "HalfNormal": lambda: dist.HalfNormal(TWO),
    "HurdleGamma": lambda: dist.HurdleGamma(SHARES, 2.0, 1.0),
    "HurdleLogNormal": lambda: dist.HurdleLogNormal(SHARES, 0.0, 0.5),
    "HurdleLogits": lambda: dist.HurdleLogits(dist.Poisson(TWO), TWO),
    "HurdlePoisson": lambda: dist.HurdlePoisson(SHARES, 2.0),
    "HurdleProbs": lambda: dist.HurdleProbs(dist.Poisson(TWO), 0.4),
    "ImproperUniform": lambda: dist.ImproperUniform(constraints.real, (2,), ()),
    "Independent": lambda: dist.Independent(dist.Normal(TWO, 1.0), 1),
    "IntervalCensoredDistribution": lambda: dist.IntervalCensoredDistribution(
        dist.Normal(TWO, 1.0), jnp.zeros(2, bool), jnp.zeros(2, bool)
    ),
    "InverseGamma": lambda: dist.InverseGamma(TWO + 3, 2.0),
    "InverseWishart": lambda: dist.InverseWishart(6.0, COVARIANCE),
    "InverseWishartCholesky": lambda: dist.InverseWishartCholesky(6.0, COVARIANCE),
    "Kumaraswamy": lambda: dist.Kumaraswamy(TWO, 1.5),
    "LKJ": lambda: dist.LKJ(3, 1.5),
    "LKJCholesky": lambda: dist.LKJCholesky(3, 1.5),
    "Laplace": lambda: dist.Laplace(TWO, 1.0),
    "LeftCensoredDistribution": lambda: dist.LeftCensoredDistribution(dist.Normal(TWO, 1.0), jnp.zeros(2)),
    "LeftTruncatedDistribution": lambda: dist.LeftTruncatedDistribution(dist.Normal(TWO, 1.0), 0.5),
    "LeftTruncatedGamma": lambda: dist.LeftTruncatedGamma(dist.Gamma(TWO + 1, 2.0), 0.5),
    "Levy": lambda: dist.Levy(TWO, 1.0),
    "LogNormal": lambda: dist.LogNormal(TWO, 0.4),
    "LogUniform": lambda: dist.LogUniform(TWO, 4.0),
    "Logistic": lambda: dist.Logistic(TWO, 0.5),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(TWO, jnp.ones((2, 1)), jnp.ones(2)),
    "LowerTruncatedPowerLaw": lambda: dist.LowerTruncatedPowerLaw(-TWO - 2, 1.0),
    "MaskedDistribution": lambda: dist.Normal(TWO, 1.0).mask(True),
    "MatrixNormal": lambda: dist.MatrixNormal(jnp.ones((2, 2)), ROOT, ROOT),
    "MixtureGeneral": lambda: dist.MixtureGeneral(
        dist.Categorical(ROWS[:, :2] / ROWS[:, :2].sum(-1, keepdims=True)),
        [dist.Normal(TWO, 0.5), dist.Normal(-TWO, 1.0)],
    ),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(ROWS), dist.Normal(jnp.array([-1.0, 0.0, 2.0]), 0.5)
    ),
    "MultinomialLogits": lambda: dist.MultinomialLogits(jnp.log(ROWS), 4),
    "MultinomialProbs": lambda: dist.MultinomialProbs(ROWS, 4),
    "MultivariateNormal": lambda: dist.MultivariateNormal(TWO, COVARIANCE),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(6.0, TWO, ROOT),
    "NegativeBinomial2": lambda: dist.NegativeBinomial2(TWO, 3.0),
    "NegativeBinomialLogits": lambda: dist.NegativeBinomialLogits(3.0, -TWO),
    "NegativeBinomialProbs": lambda: dist.NegativeBinomialProbs(3.0, SHARES),
    "Normal": lambda: dist.Normal(TWO, 1.0),
    "OrderedLogistic": lambda: dist.OrderedLogistic(TWO, jnp.array([0.0, 1.0])),
    "Pareto": lambda: dist.Pareto(TWO, 5.0),
    "Poisson": lambda: dist.Poisson(TWO),
    "ProjectedNormal": lambda: dist.ProjectedNormal(jnp.array([[1.0, 0.5], [0.2, 2.0]])),
    "RelaxedBernoulliLogits": lambda: dist.RelaxedBernoulliLogits(0.7, TWO),
    "RightCensoredDistribution": lambda: dist.RightCensoredDistribution(dist.Normal(TWO, 1.0), jnp.zeros(2)),
    "RightTruncatedDistribution": lambda: dist.RightTruncatedDistribution(dist.Normal(TWO, 1.0), 2.0),
    "RightTruncatedGamma": lambda: dist.RightTruncatedGamma(dist.Gamma(TWO + 1, 2.0), 2.0),
    "SineBivariateVonMises": lambda: dist.SineBivariateVonMises(0.5, -0.5, 2.0, 2.0, 0.5),
    "SineSkewed": lambda: dist.SineSkewed(
        dist.VonMises(jnp.array([0.5, 1.0]), 2.0).to_event(1), jnp.array([0.2, -0.3])
    ),
    "SoftLaplace": lambda: dist.SoftLaplace(TWO, 1.0),
    "StudentT": lambda: dist.StudentT(6.0, TWO, 1.0),
    "TransformedDistribution": lambda: dist.TransformedDistribution(
        dist.Normal(TWO, 0.3), transforms.ExpTransform()
    ),
    "TruncatedPolyaGamma": lambda: dist.TruncatedPolyaGamma((2,)),
    "TwoSidedTruncatedDistribution": lambda: dist.TwoSidedTruncatedDistribution(
        dist.Normal(TWO, 1.0), 0.0, 2.0
    ),
    "TwoSidedTruncatedGamma": lambda: dist.TwoSidedTruncatedGamma(dist.Gamma(TWO + 1, 2.0), 0.5, 3.0),
    "Uniform": lambda: dist.Uniform(0.0, TWO),
    "VonMises": lambda: dist.VonMises(TWO, 2.0),
    "Weibull": lambda: dist.Weibull(TWO, 2.0),
    "Wishart": lambda: dist.Wishart(4.0, COVARIANCE),
    "WishartCholesky": lambda: dist.WishartCholesky(4.0, COVARIANCE),
    "ZeroInflatedLogits": lambda: dist.ZeroInflatedLogits(dist.Poisson(TWO), TWO),
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(SHARES, 2.0),
    "ZeroInflatedProbs": lambda: dist.ZeroInflatedProbs(dist.Poisson(TWO), 0.4),
    "ZeroSumNormal": lambda: dist.ZeroSumNormal(1.0, (3,)),
}
NOT_LAWS = {"Distribution", "Unit"}  # the base class, and what factors are made of
