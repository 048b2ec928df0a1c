"""How good is a fit? Scores of a clustering, the parts of the ELBO, the choice of granularity, comparison of priors."""
