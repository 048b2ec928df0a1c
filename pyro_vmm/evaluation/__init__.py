"""How good a fit is: scores of a clustering, the parts of the ELBO, and the choice of the granularity."""
