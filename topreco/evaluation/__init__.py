"""Quality of a reconstruction: histograms, metrics, tables and figures.

`histograms` books the histograms that a processor returns and `fill` fills them, `responses` does both for
response matrices. `summary` applies the formulas of `topreco.core.statistics` to filled histograms, `report`
writes tables and JSON. `figures` takes the input of figures from histograms and saves them, `draw` draws each
of them, `style` holds colours and labels.
"""
