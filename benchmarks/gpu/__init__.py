"""What a GPU does with physseg, in five minutes: `make gpu`."""
