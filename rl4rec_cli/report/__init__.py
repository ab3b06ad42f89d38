"""Pages and cards: HTML, plots, model cards."""
