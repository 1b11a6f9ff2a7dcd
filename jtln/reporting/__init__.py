"""What results show: statistics, tables, plots and pages."""
