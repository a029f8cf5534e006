"""What a run has come to: pictures for TensorBoard while it trains, and the page of `physseg report`."""
