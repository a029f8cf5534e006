"""L = L_seg + lambda_p L^p + lambda_sac L^sac: pure functions on tensors, and their sum."""
