"""One file per published data set, and what they share; annotations/ paints labels from JSON."""
