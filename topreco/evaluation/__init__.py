"""What a reconstruction is worth: histograms, metrics, tables and figures.

`histograms` books and fills what a processor returns, `metrics` holds the formulas, `summary` applies them to
filled histograms, `report` writes tables and JSON, `plotting` draws.
"""
