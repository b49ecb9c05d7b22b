"""Methods of reconstruction: networks and analytic ones with one call."""
