"""Methods of reconstruction: networks and analytic ones behind one call."""
