"""How good a fit is: scores of a clustering, the parts of the ELBO, the choice of the granularity, priors compared."""
