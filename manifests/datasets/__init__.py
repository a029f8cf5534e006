"""One file per published data set, and what they share: archives, annotation files, painted labels."""
