"""Reports of results: statistics, tables, plots and pages."""
