"""What one runs, on top of the integrations: the demo, small data sets, reports, training and sampling."""
