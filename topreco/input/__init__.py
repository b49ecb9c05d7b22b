"""From NanoAOD files to selected events, truth and skims."""
