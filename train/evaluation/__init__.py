"""From predictions to figures: confusion matrix, results, tables."""
