"""What there is: data set folders become one table of samples with a vocabulary. Imports nothing of ours."""
