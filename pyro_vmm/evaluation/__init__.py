"""How good a fit is: scores of a clustering, the parts of the ELBO, choice of the granularity, comparison of priors."""
